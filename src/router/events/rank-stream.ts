/**
 * RankStream (R4): makes one ordered stream, without gaps, of what one worker rank publishes and of what its replay
 * socket brings again. A pure state machine: no socket, no timer, no clock; its owner (ingest.ts) carries out what it
 * asks for. Runs on the ingest thread.
 *
 * Facts it stands on (vLLM and SGLang): sequence numbers start at 0 in each publisher process and rise by 1 per batch;
 * a batch begins with the wall-clock second at which it was made, so a lower number with a later time is an engine
 * that began anew, and a lower number with an earlier time is a batch seen before.
 *
 * A replay is asked for from the last batch that was delivered, not from the first one that is missing: if that batch
 * comes back with another time, the numbers belong to another process, and must not be joined to what was delivered.
 */
import type { SourceCounts } from './contract.js';

/** What a RankStream tells its owner, and its bounds. No callback may call back into the stream. */
export interface RankStreamOptions {
  /** The publisher has a replay socket; else every gap clears the rank. */
  readonly hasReplay: boolean;
  /** Batches, and bytes of payloads, that may wait for the end of a replay. */
  readonly waitingBatchesMax: number;
  readonly waitingBytesMax: number;
  /** Counted in place; shared by all streams of the process. */
  readonly counts: SourceCounts;
  /**
   * The next batch; its bytes are valid during the call. `timestampS`: seconds since the epoch at which the engine made it, NaN when unreadable.
   * `isLive`: it came from the event socket, not from a replay.
   */
  readonly deliver: (payload: Uint8Array, timestampS: number, isLive: boolean) => void;
  /** Everything delivered so far is void. */
  readonly clear: () => void;
  /**
   * Starts a replay from a sequence number; its answers carry `id`. False: not now, and the rank is cleared instead.
   * The stream relies on an end: `replayEnded` or `replayFailed`, by a deadline.
   */
  readonly askReplay: (from: number, id: number) => boolean;
  /** The running replay is of no more use. */
  readonly dropReplay: () => void;
}

interface Waiting {
  readonly sequence: number;
  readonly timestampS: number;
  readonly payload: Uint8Array;
  readonly isLive: boolean;
}

/** The stream of one publisher. Sequence numbers are safe integers ≥ 0. */
export class RankStream {
  readonly #options: RankStreamOptions;
  readonly #counts: SourceCounts;
  /** Number that comes next, and the time of the batch before it. */
  #next = 0;
  #lastS = Number.NaN;
  /** Newest batch seen of the publisher's present process, delivered or not. */
  #highest = -1;
  #newestS = Number.NEGATIVE_INFINITY;
  /** Something was delivered since the last clear. */
  #hasState = false;
  #isSuspect = false;

  /** The replay that runs, or 0; its first number, whether that has come, and `#next` when it was asked for. */
  #replay = 0;
  #replayId = 0;
  #from = 0;
  #hasBegun = false;
  #askedAt = 0;
  #waiting: Waiting[] = [];
  #waitingBytes = 0;

  constructor(options: RankStreamOptions) {
    this.#options = options;
    this.#counts = options.counts;
  }

  /** Asks for what the engine published before we came. Does nothing when that is known already. */
  start(): void {
    if (this.#next === 0 && this.#replay === 0) this.#ask();
  }

  /**
   * The publisher was away and may be another process when it comes again. Its numbers tell, but for one case: a new process
   * that we hear first at just the number that comes next. Then a replay shows whether the batch before it is ours.
   */
  suspect(): void {
    this.#isSuspect = this.#next > 0;
  }

  /** A batch from the event socket. Its bytes are copied where they must wait. */
  live(sequence: number, payload: Uint8Array): void {
    const timestampS = readTimestamp(payload);
    if (this.#isRestart(sequence, timestampS)) this.#restart();
    if (this.#mustCheck(sequence)) {
      this.#see(sequence, timestampS);
      this.#hold({ sequence, timestampS, payload, isLive: true });
      return;
    }
    if (sequence === this.#next && this.#replay === 0 && !(timestampS < this.#lastS)) {
      this.#highest = sequence;
      // As it is, even when it is lower than another: an engine's clock may have been set back.
      if (!Number.isNaN(timestampS)) this.#newestS = timestampS;
      this.#deliver(sequence, timestampS, payload, true);
      return;
    }
    this.#see(sequence, timestampS);
    const batch: Waiting = { sequence, timestampS, payload, isLive: true };
    if (sequence < this.#next) this.#counts.duplicates += 1;
    else if (this.#replay !== 0) this.#hold(batch);
    else this.#gap(batch);
  }

  /** A batch that replay `id` brought. Its bytes are copied where they must wait. */
  replayed(id: number, sequence: number, payload: Uint8Array): void {
    if (id !== this.#replay || sequence < this.#from) return;
    this.#counts.replayedBatches += 1;
    const timestampS = readTimestamp(payload);
    const isAnother = sequence === this.#next - 1 && !Object.is(timestampS, this.#lastS);
    if (isAnother || this.#isRestart(sequence, timestampS)) {
      this.#restart();
      // Seen, so that what is left over from the process before is known by its earlier time.
      this.#see(sequence, timestampS);
      this.#ask();
      return;
    }
    this.#see(sequence, timestampS);
    if (!this.#hasBegun) {
      this.#hasBegun = true;
      // The ring of the publisher begins later than asked: what was delivered has no continuation.
      if (sequence > this.#from) this.#lose(sequence);
    }
    if (sequence < this.#next) return;
    if (sequence === this.#next) this.#deliver(sequence, timestampS, payload, false);
    else this.#hold({ sequence, timestampS, payload, isLive: false });
  }

  /** Replay `id` has brought all that there is. */
  replayEnded(id: number): void {
    if (id !== this.#replay) return;
    this.#replay = 0;
    this.#drain(true);
  }

  /** Replay `id` will bring no more: no answer in time, or a broken one. */
  replayFailed(id: number): void {
    if (id !== this.#replay) return;
    this.#counts.replayFailures += 1;
    this.#replay = 0;
    this.#drain(false);
  }

  /** Whether a suspect goes on as if nothing had been, and a replay that tells more is on its way now. */
  #mustCheck(sequence: number): boolean {
    if (!this.#isSuspect || this.#replay !== 0) return false;
    this.#isSuspect = false;
    return sequence === this.#next && this.#ask();
  }

  #isRestart(sequence: number, timestampS: number): boolean {
    return sequence <= this.#highest && timestampS > this.#newestS;
  }

  #see(sequence: number, timestampS: number): void {
    // What is older than the newest may be left over from a process that is gone: its numbers say nothing.
    if (timestampS < this.#newestS) return;
    if (!Number.isNaN(timestampS)) this.#newestS = timestampS;
    if (sequence > this.#highest) this.#highest = sequence;
  }

  #restart(): void {
    this.#counts.restarts += 1;
    this.#isSuspect = false;
    this.#abandonReplay();
    this.#clear();
    this.#next = 0;
    this.#lastS = Number.NaN;
    this.#highest = -1;
    this.#newestS = Number.NEGATIVE_INFINITY;
  }

  /**
   * A batch after the one that comes next; or with its number and an earlier time than the batch before it, from a
   * process that is gone or after the clock was set back, which only a replay can tell.
   */
  #gap(batch: Waiting): void {
    if (batch.sequence > this.#next) this.#counts.gaps += 1;
    if (this.#ask()) this.#hold(batch);
    else this.#goOnWithout(batch);
  }

  #ask(): boolean {
    if (!this.#options.hasReplay) return false;
    const from = Math.max(0, this.#next - 1);
    this.#replayId += 1;
    if (!this.#options.askReplay(from, this.#replayId)) return false;
    this.#counts.replays += 1;
    this.#replay = this.#replayId;
    this.#from = from;
    this.#hasBegun = false;
    this.#askedAt = this.#next;
    return true;
  }

  #hold(batch: Waiting): void {
    const bytes = this.#waitingBytes + batch.payload.length;
    if (this.#waiting.length < this.#options.waitingBatchesMax && bytes <= this.#options.waitingBytesMax) {
      // The bytes are lent for this call only. `slice` would not copy those of a Buffer.
      this.#waiting.push({ ...batch, payload: new Uint8Array(batch.payload) });
      this.#waitingBytes = bytes;
      return;
    }
    this.#counts.overflows += this.#waiting.length;
    this.#abandonReplay();
    this.#goOnWithout(batch);
  }

  #abandonReplay(): void {
    if (this.#replay !== 0) this.#options.dropReplay();
    this.#replay = 0;
    this.#waiting = [];
    this.#waitingBytes = 0;
  }

  /** Delivers what waited; a gap that is left is asked for again if the last replay brought us further. */
  #drain(isWhole: boolean): void {
    const isWorthAsking = isWhole && this.#next > this.#askedAt;
    const waiting = this.#waiting.sort((a, b) => a.sequence - b.sequence);
    this.#waiting = [];
    this.#waitingBytes = 0;
    for (let i = 0; i < waiting.length; i += 1) {
      const batch = waiting[i]!;
      // Older than the batch before it: left over from a process that is gone.
      if (batch.sequence < this.#next || batch.timestampS < this.#lastS) {
        if (batch.isLive) this.#counts.duplicates += 1;
        continue;
      }
      if (batch.sequence > this.#next) {
        this.#counts.gaps += 1;
        if (isWorthAsking && this.#ask()) {
          this.#waiting = waiting.slice(i);
          this.#waitingBytes = this.#waiting.reduce((bytes, { payload }) => bytes + payload.length, 0);
          return;
        }
      }
      if (batch.sequence > this.#next) this.#goOnWithout(batch);
      else this.#deliver(batch.sequence, batch.timestampS, batch.payload, batch.isLive);
    }
  }

  /** Delivers a batch to an empty rank: what lies before it is lost. */
  #goOnWithout(batch: Waiting): void {
    this.#lose(batch.sequence);
    // Taken at its word, even with an earlier time than another: an engine's clock may have been set back.
    this.#highest = batch.sequence;
    this.#newestS = batch.timestampS;
    this.#deliver(batch.sequence, batch.timestampS, batch.payload, batch.isLive);
  }

  /** Gives up everything before `sequence`. */
  #lose(sequence: number): void {
    this.#counts.lostBatches += sequence - this.#next;
    if (this.#hasState) this.#counts.clearedRanks += 1;
    this.#clear();
    this.#next = sequence;
    this.#lastS = Number.NaN;
  }

  #clear(): void {
    if (this.#hasState) this.#options.clear();
    this.#hasState = false;
  }

  #deliver(sequence: number, timestampS: number, payload: Uint8Array, isLive: boolean): void {
    this.#next = sequence + 1;
    this.#lastS = timestampS;
    this.#hasState = true;
    this.#options.deliver(payload, timestampS, isLive);
  }
}

const float64 = new Float64Array(1);
const float64Bytes = new Uint8Array(float64.buffer);
const isLittleEndian = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;

/** Keys of a batch in map form that are looked at before the search for `ts` ends. */
const KEYS_MAX = 4;

/**
 * The time of a batch in seconds since the epoch: element 0 of the msgpack array, or `ts` among the first keys of the
 * map, behind none but numbers, nil, booleans and short strings (vLLM's order puts it first). NaN when there is none.
 */
export function readTimestamp(payload: Uint8Array): number {
  const first = payload[0];
  if (first === undefined) return Number.NaN;
  if (first >= 0x91 && first <= 0x9f) return readNumber(payload, 1);
  if (first === 0xdc) return readNumber(payload, 3);
  if (first === 0xdd) return readNumber(payload, 5);
  if (first >= 0x81 && first <= 0x8f) return readMapTimestamp(payload, 1, first - 0x80);
  if (first === 0xde) return readMapTimestamp(payload, 3, KEYS_MAX);
  return Number.NaN;
}

function readMapTimestamp(payload: Uint8Array, start: number, keys: number): number {
  let at = start;
  for (let key = 0; key < Math.min(keys, KEYS_MAX); key += 1) {
    // 0xa2 't' 's': the string "ts".
    if (payload[at] === 0xa2 && payload[at + 1] === 0x74 && payload[at + 2] === 0x73)
      return readNumber(payload, at + 3);
    at = afterScalar(payload, afterScalar(payload, at));
  }
  return Number.NaN;
}

/** Bytes of a msgpack scalar behind its type byte, from 0xc0 on; −1 for what is none. */
const SCALAR_BYTES = [
  0, -1, 0, 0, -1, -1, -1, -1, -1, -1, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, -1, -1, -1, -1, -1, -1,
];

/** Where the value after the one at `at` begins; the end of the payload when that one is no short scalar. */
function afterScalar(payload: Uint8Array, at: number): number {
  const type = payload[at];
  if (type === undefined) return payload.length;
  if (type < 0x80 || type >= 0xe0) return at + 1;
  if (type >= 0xa0 && type < 0xc0) return at + 1 + (type - 0xa0);
  if (type === 0xd9) return at + 2 + (payload[at + 1] ?? 0);
  const bytes = SCALAR_BYTES[type - 0xc0] ?? -1;
  return bytes < 0 ? payload.length : at + 1 + bytes;
}

/** The msgpack float or unsigned integer at `at`, or NaN. */
function readNumber(payload: Uint8Array, at: number): number {
  const type = payload[at];
  if (type === 0xcb && at + 9 <= payload.length) {
    for (let i = 0; i < 8; i += 1) float64Bytes[isLittleEndian ? 7 - i : i] = payload[at + 1 + i]!;
    return float64[0]!;
  }
  if (type !== undefined && type < 0x80) return type;
  const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const room = payload.length - at - 1;
  if (type === 0xca && room >= 4) return view.getFloat32(at + 1);
  if (type === 0xcc && room >= 1) return view.getUint8(at + 1);
  if (type === 0xcd && room >= 2) return view.getUint16(at + 1);
  if (type === 0xce && room >= 4) return view.getUint32(at + 1);
  if (type === 0xcf && room >= 8) return Number(view.getBigUint64(at + 1));
  return Number.NaN;
}
