/**
 * ReplayClient (R4): asks the replay socket of one worker rank for batches that it published before, as vLLM and SGLang
 * serve them: a DEALER sends ["", start] and gets ["", sequence, payload] for each, then a terminator whose sequence is
 * eight bytes of 0xff. Newer ones (seen on vLLM 0.32.0) put the topic before the sequence: ["", topic, sequence, payload]. One replay runs at a time, on a socket of its own, so that no answer of an earlier one can be
 * mistaken for its own. The ingest thread owns it.
 */
import type { Clock, Timer } from '../../runtime/clock.js';
import type { Random } from '../../runtime/random.js';
import type { SourceCounts } from './contract.js';
import { readSequence } from './zmq-source.js';
import { ZmtpConnector } from './zmtp/connector.js';
import type { ZmtpMessage } from './zmtp/decoder.js';
import { type NetAddress, readEndpoint } from './zmtp/endpoint.js';
import { encodeMessage } from './zmtp/wire.js';

/** What a ReplayClient needs and whom it tells. Every accepted replay ends with one `ended` or `failed`, or by `drop`. */
export interface ReplayClientOptions {
  readonly endpoint: string;
  /** Longest time from `ask` to the terminator. */
  readonly deadlineMs: number;
  /** Largest frame, and most batches and bytes of payloads that one replay may bring. */
  readonly messageBytesMax: number;
  readonly batchesMax: number;
  readonly bytesMax: number;
  readonly counts: SourceCounts;
  readonly clock: Clock;
  readonly random: Random;
  readonly replayed: (id: number, sequence: number, payload: Uint8Array) => void;
  readonly ended: (id: number) => void;
  /** `reason`: in words for a log line. */
  readonly failed: (id: number, reason: string) => void;
}

/** A replay starts up to this much later than asked: routers that lost the same batch must not all ask at once. */
const JITTER_MS = 50;
/** After a failed replay none is accepted for a time that doubles from one failure to the next. */
const BACK_OFF_FIRST_MS = 500;
const BACK_OFF_MAX_MS = 30_000;
/**
 * An engine's ROUTER drops what finds its queue full, the terminator too: a replay that has brought something and then
 * nothing for this long to twice as long has ended. What it left out is asked for again.
 */
const SILENCE_MS = 500;

const EMPTY = new Uint8Array(0);

interface Replay {
  readonly id: number;
  readonly from: number;
  socket: ZmtpConnector | null;
  /** Batches that came, how many of them at the last look for silence, and their bytes. */
  batches: number;
  batchesBefore: number;
  bytes: number;
  /** Why the connection ended the last time. */
  lastEnd: string | null;
  readonly timers: readonly Timer[];
}

/** Replays of one rank. */
export class ReplayClient {
  readonly #options: ReplayClientOptions;
  readonly #address: NetAddress;
  /** Sockets that are closing. */
  readonly #closing = new Set<Promise<void>>();
  #replay: Replay | null = null;
  #failures = 0;
  #refuseUntilMs = Number.NEGATIVE_INFINITY;

  /** Throws ConfigError when the endpoint is not one. */
  constructor(options: ReplayClientOptions) {
    this.#address = readEndpoint('replay', options.endpoint);
    this.#options = options;
  }

  /** Starts a replay from a sequence number. False when one runs, or the last one failed a short while ago. */
  ask(from: number, id: number): boolean {
    const { clock, random, deadlineMs } = this.#options;
    if (this.#replay !== null || clock.nowMs() < this.#refuseUntilMs) return false;
    const replay: Replay = {
      id,
      from,
      socket: null,
      batches: 0,
      batchesBefore: 0,
      bytes: 0,
      lastEnd: null,
      timers: [
        clock.after(random() * JITTER_MS, () => this.#open(replay)),
        clock.after(deadlineMs, () => this.#fail(replay, replay.lastEnd ?? `no end within ${deadlineMs} ms`)),
        clock.every(SILENCE_MS, () => this.#endIfSilent(replay)),
      ],
    };
    this.#replay = replay;
    return true;
  }

  /** Ends the running replay; nothing more is told of it. */
  drop(): void {
    const replay = this.#replay;
    if (replay === null) return;
    this.#replay = null;
    for (const timer of replay.timers) timer.cancel();
    if (replay.socket === null) return;
    const closed = replay.socket.close().finally(() => this.#closing.delete(closed));
    this.#closing.add(closed);
  }

  /** Drops the running replay; resolves when all sockets are closed. */
  async close(): Promise<void> {
    this.drop();
    await Promise.all(this.#closing);
  }

  #open(replay: Replay): void {
    const { messageBytesMax, clock, random } = this.#options;
    const start = Buffer.alloc(8);
    start.writeBigUInt64BE(BigInt(replay.from));
    replay.socket = new ZmtpConnector({
      type: 'DEALER',
      address: this.#address,
      frameBytesMax: messageBytesMax,
      clock,
      random,
      onReady: connection => connection.send(encodeMessage([EMPTY, start])),
      onMessage: message => this.#take(replay, message),
      onEnd: reason => {
        replay.lastEnd = reason;
        // Asked again over a new connection it would begin at its start; the stream asks for what is left.
        if (replay.batches > 0) this.#end(replay);
      },
    });
  }

  #take(replay: Replay, { bytes, frames, starts, ends }: ZmtpMessage): void {
    const { counts, batchesMax, bytesMax, replayed } = this.#options;
    const last = frames - 1;
    const isAnswer = (frames === 3 || frames === 4) && ends[0] === starts[0];
    if (isAnswer && starts[last] === ends[last] && isEnd(bytes, starts[last - 1]!, ends[last - 1]!)) {
      this.#end(replay);
      return;
    }
    replay.batches += 1;
    replay.bytes += ends[last]! - starts[0]!;
    if (replay.bytes > bytesMax) {
      this.#fail(replay, `it brought more than ${bytesMax} bytes`);
      return;
    }
    const sequence = isAnswer ? readSequence(bytes, starts[last - 1]!, ends[last - 1]!) : -1;
    if (sequence < 0) counts.badFrames += 1;
    else replayed(replay.id, sequence, bytes.subarray(starts[last]!, ends[last]!));
    if (replay.batches >= batchesMax) this.#fail(replay, `it brought ${batchesMax} batches and no end`);
  }

  #endIfSilent(replay: Replay): void {
    if (replay.batches > 0 && replay.batches === replay.batchesBefore) this.#end(replay);
    replay.batchesBefore = replay.batches;
  }

  #end(replay: Replay): void {
    if (this.#replay !== replay) return;
    this.drop();
    this.#failures = 0;
    this.#options.ended(replay.id);
  }

  #fail(replay: Replay, reason: string): void {
    if (this.#replay !== replay) return;
    this.drop();
    const { clock, random, failed } = this.#options;
    const pauseMs = Math.min(BACK_OFF_MAX_MS, BACK_OFF_FIRST_MS * 2 ** this.#failures);
    this.#failures += 1;
    this.#refuseUntilMs = clock.nowMs() + pauseMs * (0.5 + random() / 2);
    failed(replay.id, reason);
  }
}

const SEQUENCE_BYTES = 8;

/** Whether it is the number that ends a replay, −1. */
function isEnd(bytes: Uint8Array, start: number, end: number): boolean {
  if (end - start !== SEQUENCE_BYTES) return false;
  for (let at = start; at < end; at += 1) if (bytes[at] !== 0xff) return false;
  return true;
}
