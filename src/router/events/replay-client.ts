/**
 * ReplayClient (R4): asks the replay socket of one worker rank for batches that it published before, as vLLM and SGLang
 * serve them: a DEALER sends ["", start] and gets ["", sequence, payload] for each, then a terminator whose sequence is
 * eight bytes of 0xff. Newer ones (seen on vLLM 0.32.0) put the topic before the sequence: ["", topic, sequence, payload]. One replay runs at a time, on a socket of its own, so that no answer of an earlier one can be
 * mistaken for its own. The ingest thread owns it.
 */
import type { Clock, Timer } from '../../runtime/clock.js';
import type { Random } from '../../runtime/random.js';
import type { SourceCounts } from './contract.js';
import { checkEndpoint, readSequence, type ZeroMq } from './zmq-source.js';

/** What a ReplayClient needs and whom it tells. Every accepted replay ends with one `ended` or `failed`, or by `drop`. */
export interface ReplayClientOptions {
  readonly zmq: ZeroMq;
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
  readonly failed: (id: number) => void;
}

/** A replay starts up to this much later than asked: routers that lost the same batch must not all ask at once. */
const JITTER_MS = 50;
/** After a failed replay none is accepted for a time that doubles from one failure to the next. */
const BACK_OFF_FIRST_MS = 500;
const BACK_OFF_MAX_MS = 30_000;
/** Batches handed on in one turn of the event loop. */
const BATCHES_PER_TURN = 32;
/**
 * An engine's ROUTER drops what finds its queue full, the terminator too: a replay that has brought something and then
 * nothing for this long to twice as long has ended. What it left out is asked for again.
 */
const SILENCE_MS = 500;
/** Room for an engine's whole ring of 10 000 batches. */
const RECEIVE_QUEUE_MAX = 16_384;

const EMPTY = new Uint8Array(0);

interface Replay {
  readonly id: number;
  readonly from: number;
  socket: InstanceType<ZeroMq['Dealer']> | null;
  /** Batches that came, and how many of them at the last look for silence. */
  batches: number;
  batchesBefore: number;
  readonly timers: readonly Timer[];
}

/** Replays of one rank. */
export class ReplayClient {
  readonly #options: ReplayClientOptions;
  readonly #loops = new Set<Promise<void>>();
  #replay: Replay | null = null;
  #failures = 0;
  #refuseUntilMs = Number.NEGATIVE_INFINITY;

  /** Throws ConfigError when the endpoint is not one. */
  constructor(options: ReplayClientOptions) {
    checkEndpoint('replay', options.endpoint);
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
      timers: [
        clock.after(random() * JITTER_MS, () => this.#open(replay)),
        clock.after(deadlineMs, () => this.#fail(replay)),
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
    replay.socket?.close();
  }

  /** Drops the running replay; resolves when all sockets are closed and their loops have ended. */
  async close(): Promise<void> {
    this.drop();
    await Promise.all(this.#loops);
  }

  #open(replay: Replay): void {
    const socket = new this.#options.zmq.Dealer({
      linger: 0,
      receiveHighWaterMark: RECEIVE_QUEUE_MAX,
      maxMessageSize: this.#options.messageBytesMax,
    });
    replay.socket = socket;
    const loop = this.#run(replay, socket).finally(() => this.#loops.delete(loop));
    this.#loops.add(loop);
  }

  async #run(replay: Replay, socket: InstanceType<ZeroMq['Dealer']>): Promise<void> {
    const { counts, batchesMax, bytesMax, replayed } = this.#options;
    const isSent = await this.#request(socket, replay.from);
    let bytes = 0;
    while (isSent && replay.batches < batchesMax) {
      const frames = await receive(socket);
      if (this.#replay !== replay) return;
      if (frames === null) break;
      if (isTerminator(frames)) {
        this.#end(replay);
        return;
      }
      const sequence = isAnswer(frames) ? readSequence(frames.at(-2)!) : -1;
      bytes += frames.reduce((sum, frame) => sum + frame.length, 0);
      if (bytes > bytesMax) break;
      replay.batches += 1;
      if (sequence < 0) counts.badFrames += 1;
      else replayed(replay.id, sequence, frames.at(-1)!);
      if (replay.batches % BATCHES_PER_TURN === 0) await new Promise(setImmediate);
    }
    this.#fail(replay);
  }

  /** False when the socket refuses the endpoint, or is closed before the request could be sent. */
  async #request(socket: InstanceType<ZeroMq['Dealer']>, from: number): Promise<boolean> {
    const start = Buffer.alloc(8);
    start.writeBigUInt64BE(BigInt(from));
    try {
      socket.connect(this.#options.endpoint);
      await socket.send([EMPTY, start]);
      return true;
    } catch {
      return false;
    }
  }

  #endIfSilent(replay: Replay): void {
    if (replay.batches > 0 && replay.batches === replay.batchesBefore) this.#end(replay);
    replay.batchesBefore = replay.batches;
  }

  #end(replay: Replay): void {
    this.drop();
    this.#failures = 0;
    this.#options.ended(replay.id);
  }

  #fail(replay: Replay): void {
    if (this.#replay !== replay) return;
    this.drop();
    const { clock, random, failed } = this.#options;
    const pauseMs = Math.min(BACK_OFF_MAX_MS, BACK_OFF_FIRST_MS * 2 ** this.#failures);
    this.#failures += 1;
    this.#refuseUntilMs = clock.nowMs() + pauseMs * (0.5 + random() / 2);
    failed(replay.id);
  }
}

/** The next message, or null when the socket is closed or broken. */
async function receive(socket: InstanceType<ZeroMq['Dealer']>): Promise<readonly Uint8Array[] | null> {
  try {
    return await socket.receive();
  } catch {
    return null;
  }
}

const isAnswer = (frames: readonly Uint8Array[]): boolean =>
  (frames.length === 3 || frames.length === 4) && frames[0]!.length === 0;

const isTerminator = (frames: readonly Uint8Array[]): boolean =>
  isAnswer(frames) &&
  frames.at(-1)!.length === 0 &&
  frames.at(-2)!.length === 8 &&
  frames.at(-2)!.every(byte => byte === 0xff);
