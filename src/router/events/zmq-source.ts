/**
 * ZmqSource (R4): the event socket of one worker rank, a SUB of ZeroMQ's protocol. It subscribes, checks the frames of each
 * message and hands on sequence number and payload; order and gaps are RankStream's. Reconnects, or listens, by itself.
 * The ingest thread owns it.
 */
import type { Clock } from '../../runtime/clock.js';
import type { Logger } from '../../runtime/logger.js';
import type { Random } from '../../runtime/random.js';
import type { EventEndpoints, SourceCounts } from './contract.js';
import { ZmtpConnector, type ZmtpConnectorOptions } from './zmtp/connector.js';
import type { ZmtpMessage } from './zmtp/decoder.js';
import { readEndpoint } from './zmtp/endpoint.js';
import { ZmtpListener } from './zmtp/listener.js';
import { encodeSubscribe } from './zmtp/wire.js';

const BIND = 'bind:';

/** What a ZmqSource needs. */
export interface ZmqSourceOptions {
  readonly endpoints: EventEndpoints;
  /** For log lines. */
  readonly name: string;
  /** Largest frame that is taken; a longer one ends the connection, which is then made anew. */
  readonly messageBytesMax: number;
  readonly counts: SourceCounts;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  /** The payload is valid during the call, which must not throw. */
  readonly onBatch: (sequence: number, payload: Uint8Array) => void;
  /** The publisher is there again after its connection had ended: it may be another process. */
  readonly onReturn: () => void;
}

/** A subscription from its construction until `close`. */
export class ZmqSource {
  readonly #options: ZmqSourceOptions;
  readonly #topic: Buffer;
  readonly #socket: ZmtpConnector | ZmtpListener;
  #hasConnected = false;
  #hasWarned = false;

  /** Throws ConfigError when an endpoint is not one. */
  constructor(options: ZmqSourceOptions) {
    this.#options = options;
    const { endpoints, messageBytesMax, clock, random } = options;
    const { publish, topic } = endpoints;
    const isListening = publish.startsWith(BIND);
    const address = readEndpoint('publish', isListening ? publish.slice(BIND.length) : publish, isListening);
    this.#topic = Buffer.from(topic);
    const shared: Omit<ZmtpConnectorOptions, 'random'> = {
      type: 'SUB',
      address,
      frameBytesMax: messageBytesMax,
      clock,
      onReady: (connection, minor) => {
        connection.send(encodeSubscribe(topic, minor));
        if (this.#hasConnected) options.onReturn();
        this.#hasConnected = true;
      },
      onMessage: message => this.#take(message),
      onEnd: reason => this.#warn('an event socket has no connection; is retried', reason),
    };
    this.#socket = isListening
      ? new ZmtpListener({
          ...shared,
          onRefused: reason => this.#warn('an event socket cannot listen; is retried', reason),
        })
      : new ZmtpConnector({ ...shared, random });
  }

  /** Nothing is handed on after this call; resolves when the sockets are closed. */
  close(): Promise<void> {
    return this.#socket.close();
  }

  /** Once per source: what fails is tried again several times a second. */
  #warn(message: string, reason: string): void {
    const { logger, name, endpoints } = this.#options;
    const level = this.#hasWarned ? 'debug' : 'warn';
    this.#hasWarned = true;
    logger[level](message, { worker: name, endpoint: endpoints.publish, reason });
  }

  #take({ bytes, frames, starts, ends }: ZmtpMessage): void {
    const { counts, onBatch } = this.#options;
    // Publishers filter by themselves; one that does not must not be believed.
    if (!this.#isWanted(bytes, starts[0]!, ends[0]!)) return;
    counts.messages += 1;
    const sequence = frames === 3 ? readSequence(bytes, starts[1]!, ends[1]!) : -1;
    if (sequence < 0) counts.badFrames += 1;
    else onBatch(sequence, bytes.subarray(starts[2]!, ends[2]!));
  }

  #isWanted(bytes: Uint8Array, start: number, end: number): boolean {
    const topic = this.#topic;
    if (end - start < topic.length) return false;
    for (let i = 0; i < topic.length; i += 1) if (bytes[start + i] !== topic[i]) return false;
    return true;
  }
}

/** Sequence numbers from here on are not counted by any engine, and would lose their exactness. */
const SEQUENCE_HIGH_MAX = 2 ** 21;

/** The big-endian number in a frame of 8 bytes; −1 when it is no such frame or its number is not below 2^53. */
export function readSequence(bytes: Uint8Array, start: number, end: number): number {
  if (end - start !== 8) return -1;
  const high = readWord(bytes, start);
  return high < SEQUENCE_HIGH_MAX ? high * 2 ** 32 + readWord(bytes, start + 4) : -1;
}

const readWord = (bytes: Uint8Array, at: number): number =>
  ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0;
