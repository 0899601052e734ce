/**
 * The transfer agent (K0–K3) as an application holds it: its pools, its peers, its events. One per JS thread is usual,
 * several are possible, in any number of threads. A native progress thread moves the bytes and needs nothing of the event
 * loop; what has happened reaches the loop by one wake-up for all of it and is read here from one shared array.
 *
 * An idle agent does not hold the process, one with transfers in flight does.
 */
import { EventEmitter } from 'node:events';
import { markAsUntransferable } from 'node:worker_threads';
import { addonStatus, loadAddon } from '../runtime/addon.js';
import { AgentPort, type PortOptions } from './agent-port.js';
import { bytes, choice, options, text, wholeNumber } from './checks.js';
import {
  METADATA_BYTES_MAX,
  NOTIFICATION_BYTES_MAX,
  TRANSFER_EVENT,
  TRANSFER_EVENT_KIND,
  TRANSFER_EVENT_WORDS,
  TRANSPORTS,
} from './descriptor.js';
import { codeOf, invalid, TransferError, type TransferErrorCode } from './errors.js';
import { Flights } from './flights.js';
import { BLOCKS_MAX, type Layout, layoutBytes, layoutWords, modelOf, poolBytes, twoWords } from './layout.js';
import { NativeAgent, type TransferNative } from './native-agent.js';
import { Peer, type TransportName } from './peer.js';
import { type Lease, Pool } from './pool.js';

/** How an agent is set up. */
export interface TransferAgentOptions {
  /** Shown in its metadata, to people. */
  readonly name?: string;
  /** Those that may be used. Default: all that are available. */
  readonly transports?: readonly TransportName[];
  /** Where tcp listens. Default 127.0.0.1. */
  readonly listenHost?: string;
  /** Transfers at once, 1 to 65,536. Default 4,096. */
  readonly operationsMax?: number;
  /** How long the progress thread spins before it sleeps, 0 to 1,000,000. Default 20. */
  readonly spinUs?: number;
}

/** A pool of new memory. */
export interface CreatePoolOptions {
  readonly layout: Layout;
  readonly blocks: number;
  /** Default: what the layout needs. Required for a tensor list. */
  readonly bytes?: number;
  /** Makes it in the memory of this GPU, by the driver's number. Default: host memory. */
  readonly device?: number;
  /** Shown in the process's memory map; of host memory. */
  readonly name?: string;
  /** Keeps the states of its blocks (`Pool.table`). Default false. */
  readonly blockTable?: boolean;
}

/** A pool over memory of the caller. */
export interface RegisterPoolOptions {
  readonly layout: Layout;
  readonly blocks: number;
  /** Held until the pool is closed, and not to be transferred to another thread. A resizable buffer is refused. */
  readonly buffer: ArrayBufferLike | ArrayBufferView;
  /** Keeps the states of its blocks (`Pool.table`). Default false. */
  readonly blockTable?: boolean;
}

/** A pool over memory of a GPU, whose owner keeps it until the pool is closed. */
export interface RegisterDevicePoolOptions {
  readonly layout: Layout;
  readonly blocks: number;
  /** The GPU by the driver's number. */
  readonly device: number;
  /** Where the memory begins on the device, above 0. */
  readonly address: bigint | number;
  readonly bytes: number;
  /** Keeps the states of its blocks (`Pool.table`). Default false. */
  readonly blockTable?: boolean;
}

/** What a transport can do on this machine. */
export interface TransportInfo {
  readonly name: string;
  readonly available: boolean;
  /** Why not, or what limits it. */
  readonly reason: string;
  /** Bit 0: host memory; bit 1: device memory. */
  readonly memoryKinds: number;
  readonly sameHostOnly: boolean;
  /** Works while the peer's progress thread stands still. */
  readonly oneSided: boolean;
}

/** The events of an agent and what their listeners get. */
export interface TransferEvents {
  /** Bytes that a peer sent, or that came with its transfer. */
  notification: [{ readonly peer: Peer; readonly bytes: Uint8Array }];
  peerUp: [Peer];
  /** No transport reaches it any more, with the reason in words; its transfers have ended. `connect` again makes a new try. */
  peerLost: [Peer, string];
  /** DEADLINE: its time was over; PEER_LOST: the peer died; null: the peer is done. The lease has been released. */
  leaseExpired: [Lease, TransferErrorCode | null];
  /** Its transfers are quiet and none will begin: it was closed, or its thread ended. */
  portEnded: [AgentPort];
}

const NAME_BYTES_MAX = 128;
const POOL_NAME_BYTES_MAX = 200;
const HOST_BYTES_MAX = 255;
const DEVICE_MAX = 1023;
const ADDRESS_MAX = 2n ** 64n - 1n;
const EVENTS = 256;
/** Polls in one turn of the event loop. */
const POLLS_MAX = 16;

/** The addon; throws UNSUPPORTED without it. */
export function native(): TransferNative {
  const addon = loadAddon();
  if (addon === null)
    throw new TransferError('UNSUPPORTED', `transfers need the addon: ${addonStatus().reason}`);
  return addon;
}

/** What the transports of this build can do here, with the reason where one cannot be used. Throws UNSUPPORTED without the addon. */
export function probeTransports(): TransportInfo[] {
  return JSON.parse(native().transferProbe()) as TransportInfo[];
}

/** Opens an agent. Throws UNSUPPORTED without the addon, INVALID for a wrong option. */
export function createAgent(given: TransferAgentOptions = {}): TransferAgent {
  return new TransferAgent(native(), given);
}

/** An address on a device, from 1. */
function deviceAddress(value: unknown): bigint {
  const address =
    typeof value === 'bigint' ? value : BigInt(wholeNumber('address', value, 1, Number.MAX_SAFE_INTEGER));
  if (address < 1n || address > ADDRESS_MAX) invalid('address', String(value), `1 to ${ADDRESS_MAX}`);
  return address;
}

/** The memory of a buffer or a view, which is marked so that no thread can take it away. */
function memoryOf(buffer: ArrayBufferLike | ArrayBufferView): Uint8Array {
  const view = ArrayBuffer.isView(buffer)
    ? new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength)
    : buffer instanceof ArrayBuffer || buffer instanceof SharedArrayBuffer
      ? new Uint8Array(buffer, 0, buffer.byteLength)
      : invalid('buffer', buffer, 'an ArrayBuffer, a SharedArrayBuffer or a view');
  const memory = view.buffer;
  if (memory instanceof ArrayBuffer) {
    if ((memory as { resizable?: boolean }).resizable) invalid('buffer', 'resizable', 'of a fixed size');
    markAsUntransferable(memory);
  }
  return view;
}

/** An agent; made by `createAgent`. */
export class TransferAgent extends EventEmitter<TransferEvents> {
  readonly #native: NativeAgent;
  readonly #events = new Uint32Array(new SharedArrayBuffer(EVENTS * TRANSFER_EVENT_WORDS * 4));
  readonly #notifications = new Uint8Array(new SharedArrayBuffer(NOTIFICATION_BYTES_MAX));
  readonly #flights: Flights;
  readonly #peers = new Map<number, Peer>();
  readonly #leases = new Map<number, Lease>();
  readonly #ports = new Set<AgentPort>();
  #closing: Promise<void> | null = null;

  constructor(addon: TransferNative, given: TransferAgentOptions) {
    super();
    options('agent', given, ['name', 'transports', 'listenHost', 'operationsMax', 'spinUs']);
    const transports = given.transports ?? [];
    if (!Array.isArray(transports)) invalid('transports', transports, 'an array of names');
    transports.forEach((name, i) => {
      choice(`transports[${i}]`, name, TRANSPORTS);
    });
    const handle = addon.transferOpen(
      text('name', given.name ?? '', NAME_BYTES_MAX),
      transports.join(','),
      text('listenHost', given.listenHost ?? '127.0.0.1', HOST_BYTES_MAX),
      wholeNumber('operationsMax', given.operationsMax ?? 4096, 1, 65_536),
      wholeNumber('spinUs', given.spinUs ?? 20, 0, 1_000_000),
      this.#events,
      this.#notifications,
      () => this.#drain(),
    );
    if (handle < 0) throw new TransferError(codeOf(handle), `agent: ${addon.transferError()}`);
    this.#native = new NativeAgent(addon, handle);
    this.#flights = new Flights(this.#native);
  }

  /** Transfers that have not completed. */
  get inFlight(): number {
    return this.#flights.size;
  }

  /**
   * Makes a pool of zeroed memory that other processes can map. Throws INVALID, SYSTEM when there is not so much memory, and
   * for a device UNSUPPORTED without its driver or NOT_FOUND without the device.
   */
  createPool(given: CreatePoolOptions): Pool {
    options('pool', given, ['layout', 'blocks', 'bytes', 'name', 'blockTable', 'device']);
    const words = layoutWords(given.layout, given.blocks);
    const size = poolBytes(given.bytes ?? layoutBytes(given.layout, given.blocks));
    if (given.device !== undefined) return this.#devicePool(given, given.device, 0n, size, words);
    const { addon, handle } = this.#native;
    const id = addon.transferPoolCreate(
      handle,
      size >>> 0,
      Math.floor(size / 2 ** 32),
      text('name', given.name ?? 'millrace-kv', POOL_NAME_BYTES_MAX),
      words,
      modelOf(given.layout),
      given.blockTable ? 1 : 0,
    );
    return this.#pool(id, size, given);
  }

  /**
   * Makes the memory of the caller a pool, where it lies. Of a device: what a block holds must be there, the streams that made
   * it waited for, before a transfer may read it.
   */
  registerPool(given: RegisterPoolOptions | RegisterDevicePoolOptions): Pool {
    options('pool', given, ['layout', 'blocks', 'buffer', 'blockTable', 'device', 'address', 'bytes']);
    const words = layoutWords(given.layout, given.blocks);
    if ('device' in given) {
      if ('buffer' in given) invalid('pool.buffer', 'given', 'nothing where a device is given');
      const size = poolBytes(given.bytes);
      return this.#devicePool(given, given.device, deviceAddress(given.address), size, words);
    }
    for (const key of ['address', 'bytes'])
      if (key in given) invalid(`pool.${key}`, 'given', 'nothing without a device');
    const memory = memoryOf(given.buffer);
    if (memory.length === 0) invalid('buffer', 'empty', 'at least one byte');
    const { addon, handle } = this.#native;
    const hasTable = given.blockTable ? 1 : 0;
    const id = addon.transferPoolWrap(handle, memory, words, modelOf(given.layout), hasTable);
    return this.#pool(id, memory.length, given);
  }

  #devicePool(
    given: { layout: Layout; blocks: number; blockTable?: boolean },
    device: number,
    address: bigint,
    size: number,
    words: Uint32Array,
  ): Pool {
    const { addon, handle } = this.#native;
    const id = addon.transferPoolDevice(
      handle,
      wholeNumber('device', device, 0, DEVICE_MAX),
      Number(address & 0xffff_ffffn),
      Number(address >> 32n),
      size >>> 0,
      Math.floor(size / 2 ** 32),
      words,
      modelOf(given.layout),
      given.blockTable ? 1 : 0,
    );
    return this.#pool(id, size, given);
  }

  #pool(id: number, size: number, given: { layout: Layout; blocks: number; blockTable?: boolean }): Pool {
    return new Pool(this.#native, {
      id: this.#native.pass('pool', id),
      bytes: size,
      blocks: wholeNumber('blocks', given.blocks, 1, BLOCKS_MAX),
      layout: given.layout,
      hasTable: given.blockTable ?? false,
      leases: this.#leases,
    });
  }

  /** What a peer gives to `connect`: the pools of now and how to reach them. Any channel carries it. */
  metadata(): Uint8Array {
    return this.#native.addon.transferMetadata(this.#native.handle);
  }

  /**
   * Connects to the agent that made the metadata; the same Peer when it is known. Throws MISMATCH where the two do not fit,
   * STALE for metadata of an earlier life, UNSUPPORTED where no transport reaches it.
   */
  connect(metadata: Uint8Array): Peer {
    bytes('metadata', metadata, 1, METADATA_BYTES_MAX);
    const { addon, handle } = this.#native;
    return this.#peer(this.#native.pass('connect', addon.transferAddPeer(handle, metadata)));
  }

  /**
   * Makes a port, by which one other thread of this process posts transfers of this agent without a call of it: post
   * `port.description` there, and `openTransferPort` opens it. FULL when there are 256.
   */
  createPort(given: PortOptions = {}): AgentPort {
    const port = new AgentPort(this.#native, given);
    this.#ports.add(port);
    return port;
  }

  /** Counters and states, as the engine keeps them. */
  stats(): Record<string, unknown> {
    return JSON.parse(this.#native.addon.transferStats(this.#native.handle)) as Record<string, unknown>;
  }

  /**
   * Cancels what is in flight, waits until all of it has completed, joins the progress thread and gives the pools back. What
   * is posted meanwhile is rejected or cancelled. Calls after it throw CLOSED.
   */
  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  async #end(): Promise<void> {
    // Again, as listeners and awaiting callers may have posted more.
    while (this.#flights.size > 0) await this.#flights.drain();
    this.#leases.clear();
    this.#native.close();
    this.#endPorts();
  }

  #peer(id: number): Peer {
    let peer = this.#peers.get(id);
    if (peer === undefined) {
      peer = new Peer(this.#native, this.#flights, id);
      this.#peers.set(id, peer);
    }
    return peer;
  }

  /** Takes what has happened, some of it in a later turn when there is much. */
  #drain(): void {
    this.#endPorts();
    for (let polls = 0; polls < POLLS_MAX; polls++) {
      if (!this.#native.isOpen) return;
      const count = this.#native.addon.transferPoll(this.#native.handle);
      if (count === 0) return;
      for (let i = 0; i < count; i++) this.#take(i * TRANSFER_EVENT_WORDS);
    }
    setImmediate(() => this.#drain());
  }

  #endPorts(): void {
    for (const port of this.#ports) {
      if (!port.hasEnded) continue;
      this.#ports.delete(port);
      this.#guarded(() => this.emit('portEnded', port));
    }
  }

  #take(at: number): void {
    const events = this.#events;
    const kind = events[at + TRANSFER_EVENT.kind];
    if (kind === TRANSFER_EVENT_KIND.completion) {
      this.#flights.complete(events, at);
      return;
    }
    this.#guarded(() => this.#tell(kind, at));
  }

  /** A listener's error is its own: the events behind this one still have to be told. */
  #guarded(tell: () => void): void {
    try {
      tell();
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  #tell(kind: number | undefined, at: number): void {
    const events = this.#events;
    const peer = this.#peer(events[at + TRANSFER_EVENT.peer]!);
    const from = events[at + TRANSFER_EVENT.notificationAt]!;
    const said = this.#notifications.subarray(from, from + events[at + TRANSFER_EVENT.notificationBytes]!);
    if (kind === TRANSFER_EVENT_KIND.notification) {
      this.emit('notification', { peer, bytes: new Uint8Array(said) });
    } else if (kind === TRANSFER_EVENT_KIND.peerUp) {
      this.emit('peerUp', peer);
    } else if (kind === TRANSFER_EVENT_KIND.peerLost) {
      this.emit('peerLost', peer, Buffer.from(said).toString());
    } else {
      const status = events[at + TRANSFER_EVENT.status]! | 0;
      const lease = this.#leases.get(twoWords(events, at + TRANSFER_EVENT.id));
      lease?.release();
      if (lease !== undefined) this.emit('leaseExpired', lease, status < 0 ? codeOf(status) : null);
    }
  }
}
