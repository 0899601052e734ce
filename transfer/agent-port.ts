/**
 * A transfer port as the agent's thread has it: made here, described to another thread, and closed by either. The thread that
 * opens it (transfer-port.ts) posts transfers of this agent's pools and peers without this thread; only the shared memory is
 * between them. Ends with its thread, with the agent, or by `close`; then the agent says 'portEnded'.
 */
import { options, wholeNumber } from './checks.js';
import { TRANSFER_BLOCKS_MAX } from './descriptor.js';
import { invalid } from './errors.js';
import type { NativeAgent } from './native-agent.js';
import { PORT_ENTRIES_MAX, PORT_ENTRIES_MIN, PORT_HEADER, PORT_STATE } from './port-descriptor.js';
import { allocatePort, arenaWords, portWords } from './port-rings.js';

/** How large a port is. */
export interface PortOptions {
  /** Transfers at once in the port: a power of two, 16 to 4,096. Default 256. */
  readonly entries?: number;
  /** Blocks of its largest transfer, 1 to 1,048,576; about twice as many can wait to be begun. Default 16,384. */
  readonly blocksMax?: number;
}

/** What another thread opens a port by: post it there, not in a transfer list. It means nothing in another process. */
export interface PortDescription {
  /** Its number in the process. */
  readonly port: number;
  readonly memory: SharedArrayBuffer;
  readonly entries: number;
  readonly blocksMax: number;
}

/** A port of an agent, on the agent's thread; made by `TransferAgent.createPort`. */
export class AgentPort {
  readonly description: PortDescription;
  readonly #native: NativeAgent;
  readonly #words: Uint32Array;

  constructor(native: NativeAgent, given: PortOptions) {
    options('port', given, ['entries', 'blocksMax']);
    const entries = wholeNumber('entries', given.entries ?? 256, PORT_ENTRIES_MIN, PORT_ENTRIES_MAX);
    if ((entries & (entries - 1)) !== 0) invalid('entries', entries, 'a power of two');
    const blocksMax = wholeNumber('blocksMax', given.blocksMax ?? 16_384, 1, TRANSFER_BLOCKS_MAX);
    const shape = { entries, arenaWords: arenaWords(blocksMax) };
    const memory = allocatePort(shape);
    this.#native = native;
    this.#words = portWords(memory, shape)!;
    const { addon, handle } = native;
    const port = native.pass(
      'port',
      addon.transferPortCreate(handle, this.#words, entries, shape.arenaWords),
    );
    this.description = { port, memory, entries, blocksMax };
  }

  /** Its last transfer has completed and none will begin. */
  get hasEnded(): boolean {
    return Atomics.load(this.#words, PORT_HEADER.state) === PORT_STATE.ended;
  }

  /** Cancels what is in flight; the agent says 'portEnded' when all of it is quiet. A second call does nothing. */
  close(): void {
    if (this.#native.isOpen) this.#native.addon.transferPortClose(this.#native.handle, this.description.port);
  }
}
