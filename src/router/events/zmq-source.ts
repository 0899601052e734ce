/**
 * ZmqSource (R4): the event socket of one worker rank. It subscribes, checks the frames of each message and hands on
 * sequence number and payload; order and gaps are RankStream's. The binary of `zeromq` is loaded only where events are
 * configured, so that a machine without it still serves. The ingest thread owns the socket and must close it: zeromq
 * aborts the process when a thread ends with a socket open.
 */
import type * as ZeroMqModule from 'zeromq';
import { ConfigError } from '../../errors.js';
import type { Clock, Timer } from '../../runtime/clock.js';
import type { Logger } from '../../runtime/logger.js';
import type { EventEndpoints, SourceCounts } from './contract.js';

/** The part of the `zeromq` package that events need. */
export type ZeroMq = Pick<typeof ZeroMqModule, 'Subscriber' | 'Dealer' | 'context'>;

/** `zeromq`, or in one sentence why it is not there. */
export type ZeroMqStatus =
  | { readonly zmq: ZeroMq; readonly reason: null }
  | { readonly zmq: null; readonly reason: string };

/** Sockets of the process; libzmq's own bound is 1023, and each rank takes up to four with its monitor and its replay. */
const SOCKETS_MAX = 32_768;

/** Loads `zeromq` and its binary; never rejects. `load` stands in for the import where a test has it fail. */
export async function loadZeroMq(
  load: () => Promise<ZeroMq> = () => import('zeromq'),
): Promise<ZeroMqStatus> {
  try {
    const zmq = await load();
    zmq.context.maxSockets = SOCKETS_MAX;
    return { zmq, reason: null };
  } catch (error) {
    return { zmq: null, reason: `zeromq did not load: ${(error as Error).message.split('\n')[0]}` };
  }
}

/** Most messages that wait in the socket for us; beyond it they wait at the engine. */
const RECEIVE_QUEUE_MAX = 10_000;
/** Messages that are handed on in one turn of the event loop. */
const MESSAGES_PER_TURN = 32;
/**
 * Time until a failed bind is tried again (the port of a source that was just closed takes a moment to be free), and
 * until a connection that libzmq has given up is made anew.
 */
const RETRY_MS = 200;
const TCP_KEEPALIVE_IDLE_S = 15;
const BIND = 'bind:';

/** What a ZmqSource needs. `onBatch` owns the payload; it must not throw. */
export interface ZmqSourceOptions {
  readonly zmq: ZeroMq;
  readonly endpoints: EventEndpoints;
  /** For log lines. */
  readonly name: string;
  /** Largest frame that is taken; a longer one ends the connection, which is then made anew. */
  readonly messageBytesMax: number;
  readonly counts: SourceCounts;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly onBatch: (sequence: number, payload: Uint8Array) => void;
}

/** A subscription from its construction until `close`; reconnects by itself. */
export class ZmqSource {
  readonly #options: ZmqSourceOptions;
  readonly #socket: InstanceType<ZeroMq['Subscriber']>;
  readonly #finished: Promise<unknown>;
  #isClosed = false;
  #hasWarned = false;
  #wake: (() => void) | null = null;
  #renewal: Timer | null = null;

  /** Throws ConfigError when an endpoint is not one. */
  constructor(options: ZmqSourceOptions) {
    this.#options = options;
    const { publish, topic } = options.endpoints;
    const bindTo = publish.startsWith(BIND) ? publish.slice(BIND.length) : null;
    checkEndpoint('publish', bindTo ?? publish);
    this.#socket = new options.zmq.Subscriber({
      linger: 0,
      receiveHighWaterMark: RECEIVE_QUEUE_MAX,
      maxMessageSize: options.messageBytesMax,
      tcpKeepalive: 1,
      tcpKeepaliveIdle: TCP_KEEPALIVE_IDLE_S,
    });
    this.#socket.subscribe(topic);
    try {
      if (bindTo === null) this.#socket.connect(publish);
    } catch (error) {
      this.#socket.close();
      throw new ConfigError(`publish: '${publish}' is refused: ${(error as Error).message}`);
    }
    this.#finished = Promise.all([this.#run(bindTo), bindTo === null ? this.#watch(publish) : null]);
  }

  /** Nothing is handed on after this call; resolves when the socket is closed and the loop has ended. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#renewal?.cancel();
    this.#socket.close();
    this.#wake?.();
    await this.#finished;
  }

  async #run(bindTo: string | null): Promise<void> {
    if (bindTo !== null) await this.#bind(bindTo);
    let left = MESSAGES_PER_TURN;
    while (!this.#isClosed) {
      let frames: readonly Uint8Array[];
      try {
        frames = await this.#socket.receive();
      } catch (error) {
        if (this.#isClosed) return;
        this.#warn('an event socket failed to receive; is retried', (error as Error).message);
        await this.#pause();
        continue;
      }
      this.#take(frames);
      left -= 1;
      if (left === 0) {
        left = MESSAGES_PER_TURN;
        await new Promise(setImmediate);
      }
    }
  }

  async #bind(endpoint: string): Promise<void> {
    while (!this.#isClosed) {
      try {
        await this.#socket.bind(endpoint);
        return;
      } catch (error) {
        if (this.#isClosed) return;
        this.#warn(`an event socket does not bind to ${endpoint}; is retried`, (error as Error).message);
        await this.#pause();
      }
    }
  }

  /**
   * libzmq tries again by itself after a connection broke, and says so at once; a connection that ended over a message
   * that was too long or broken it gives up for good.
   */
  async #watch(publish: string): Promise<void> {
    const { clock } = this.#options;
    const monitor = this.#socket.events;
    for (;;) {
      const event = await monitor.receive();
      this.#renewal?.cancel();
      if (event.type === 'end' || this.#isClosed) return;
      if (event.type !== 'disconnect' && !event.type.startsWith('handshake:error')) continue;
      this.#renewal = clock.after(RETRY_MS, () => {
        this.#warn('an event socket was given up over what the engine sent; is connected anew', event.type);
        this.#socket.disconnect(publish);
        this.#socket.connect(publish);
      });
    }
  }

  /** Once per source: what fails is tried again several times a second. */
  #warn(message: string, reason: string): void {
    const { logger, name } = this.#options;
    if (!this.#hasWarned) logger.warn(message, { worker: name, reason });
    this.#hasWarned = true;
  }

  #pause(): Promise<void> {
    return new Promise(resolve => {
      const timer = this.#options.clock.after(RETRY_MS, resolve);
      this.#wake = () => {
        timer.cancel();
        resolve();
      };
    });
  }

  #take(frames: readonly Uint8Array[]): void {
    if (this.#isClosed) return;
    const { counts, onBatch } = this.#options;
    counts.messages += 1;
    const sequence = frames.length === 3 ? readSequence(frames[1]!) : -1;
    if (sequence < 0) counts.badFrames += 1;
    else onBatch(sequence, frames[2]!);
  }
}

/** Sequence numbers from here on are not counted by any engine, and would lose their exactness. */
const SEQUENCE_HIGH_MAX = 2 ** 21;

/** The big-endian number in a frame of 8 bytes; −1 when it is no such frame or its number is not below 2^53. */
export function readSequence(frame: Uint8Array): number {
  if (frame.length !== 8) return -1;
  const high = ((frame[0]! << 24) | (frame[1]! << 16) | (frame[2]! << 8) | frame[3]!) >>> 0;
  const low = ((frame[4]! << 24) | (frame[5]! << 16) | (frame[6]! << 8) | frame[7]!) >>> 0;
  return high < SEQUENCE_HIGH_MAX ? high * 2 ** 32 + low : -1;
}

const ENDPOINT = /^(?:tcp:\/\/[^\s/]+:(\d{1,5})|(?:ipc|inproc):\/\/\S+)$/;
const PORT_MAX = 65_535;

/** Throws ConfigError unless `endpoint` is a ZMQ address of a transport that we speak. */
export function checkEndpoint(field: string, endpoint: string): void {
  const match = ENDPOINT.exec(endpoint);
  if (match !== null && Number(match[1] ?? 1) <= PORT_MAX) return;
  throw new ConfigError(
    `${field}: '${endpoint}' is no event endpoint (tcp://host:port, ipc://path or inproc://name, without wildcard)`,
  );
}
