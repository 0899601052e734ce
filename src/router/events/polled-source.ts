/**
 * PolledSource (R4): the KV events of a server that is asked for them, as TensorRT-LLM is. A poll empties the server's
 * buffer, so nothing can be asked for again: ids that skip clear the worker, and ids that begin anew are another process.
 * One poll runs at a time; the next one leaves at once when it brought events, else after a period, after failures later
 * and later. Until the first event comes, and after failures in a row, the worker counts as one without events, for a
 * server whose buffer is off answers like one where nothing happens. Runs on the ingest thread, which owns it.
 */
import type { Clock, Timer } from '../../runtime/clock.js';
import type { Logger } from '../../runtime/logger.js';
import type { Random } from '../../runtime/random.js';
import { BatchWriter } from './batch-writer.js';
import type {
  PollConnection,
  PolledEvent,
  PolledProtocol,
  PolledTranslator,
  SourceCounts,
} from './contract.js';

/** Bounds of a polled source; see the limits of these names. */
export interface PollLimits {
  readonly eventPollPeriodMs: number;
  readonly eventPollDeadlineMs: number;
  readonly eventPollBytesMax: number;
}

/** What a PolledSource needs and whom it tells; no callback may call back into it. */
export interface PolledSourceOptions {
  readonly url: string;
  /** For log lines. */
  readonly name: string;
  readonly protocol: PolledProtocol;
  readonly limits: PollLimits;
  /** Tokens per block; null: the events say it. */
  readonly blockSize: number | null;
  readonly counts: SourceCounts;
  readonly clock: Clock;
  readonly random: Random;
  readonly logger: Logger;
  /** True: the worker's events come from now on, and it is empty. False: it counts as a worker without events. */
  readonly follow: (isFollowed: boolean) => void;
  /** The next batch of a worker that is followed. */
  readonly deliver: (payload: Uint8Array) => void;
  /** Everything delivered so far is void. */
  readonly clear: () => void;
}

const BACK_OFF_FIRST_MS = 250;
const BACK_OFF_MAX_MS = 30_000;
/** Failures in a row after which what is known of the worker is too old. */
const FAILURES_MAX = 5;
/** Statuses of a server that has no such route. */
const NO_ROUTE = new Set([404, 405, 501]);
/** An answer with fewer events is not that of a buffer that ran over. */
const FULL_ANSWER_MIN = 128;

/** Why ids skip, with what to do. */
const GAP_CAUSES = {
  lostAnswer: 'the answer to an earlier poll was lost; raise eventPollDeadlineMs if it came too late',
  overrun: 'its buffer ran over; raise event_buffer_max_size in the kv_cache_config of the server',
  otherPoller:
    'something else polls its /kv_cache_events too, and takes events away; let one data plane poll a server, and set kvEvents to off for it in the others',
} as const;
type GapCause = keyof typeof GAP_CAUSES;

/** See the head of the file. */
export class PolledSource {
  readonly #options: PolledSourceOptions;
  readonly #connection: PollConnection;
  readonly #writer: BatchWriter;
  readonly #said = new Set<string>();
  /** Last id by rank; null: it counts as empty, and may go on anywhere. */
  readonly #lastIds = new Map<number, number | null>();
  /** Made anew for each life of the server. */
  #translator: PolledTranslator;
  #timer: Timer | null = null;
  #isFollowed = false;
  #isPolling = false;
  #isPaused = false;
  #isClosed = false;
  #failures = 0;
  /** A poll may have taken events that did not arrive. */
  #isAnswerLost = false;
  /** Events of the largest answer so far. */
  #largest = 0;

  constructor(options: PolledSourceOptions) {
    const { protocol, url, blockSize } = options;
    this.#options = options;
    this.#connection = protocol.connect(url);
    this.#translator = protocol.createTranslator(blockSize);
    this.#writer = new BatchWriter(options.deliver);
  }

  /** Begins to poll. */
  start(): void {
    void this.#poll();
  }

  /** The worker does not answer: it is left alone until `resume`. Whether it was another process then, its ids tell. */
  pause(): void {
    this.#isPaused = true;
    this.#timer?.cancel();
    // Nothing tells of a guess that it is wrong now.
    if (!this.#isFollowed) this.#options.follow(false);
  }

  /** The worker answers again. */
  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    this.#failures = 0;
    void this.#poll();
  }

  /** Nothing is told after this call; resolves when the connection is closed. */
  close(): Promise<void> {
    this.#isClosed = true;
    this.#timer?.cancel();
    return this.#connection.close();
  }

  async #poll(): Promise<void> {
    if (this.#isPolling || this.#isPaused || this.#isClosed) return;
    const { limits, counts } = this.#options;
    this.#isPolling = true;
    counts.polls += 1;
    let events = 0;
    try {
      const answer = await this.#connection.poll(limits.eventPollDeadlineMs, limits.eventPollBytesMax);
      this.#isPolling = false;
      if (this.#isClosed) return;
      if (answer.status !== 200) {
        this.#fail(`status ${answer.status}`, NO_ROUTE.has(answer.status));
        return;
      }
      events = this.#take(answer.body);
    } catch (error) {
      this.#isPolling = false;
      if (this.#isClosed) return;
      this.#isAnswerLost = true;
      this.#fail((error as Error).message, false);
      return;
    }
    this.#failures = 0;
    if (events > 0) void this.#poll();
    else this.#schedule(limits.eventPollPeriodMs);
  }

  #schedule(delayMs: number): void {
    if (this.#isPaused) return;
    this.#timer = this.#options.clock.after(delayMs, () => void this.#poll());
  }

  #fail(reason: string, hasNoRoute: boolean): void {
    const { counts, name, logger, random } = this.#options;
    counts.pollFailures += 1;
    this.#failures += 1;
    if (hasNoRoute || this.#failures >= FAILURES_MAX) this.#unfollow();
    const what = hasNoRoute
      ? 'the worker has no route for KV events: what it holds is guessed from what is routed to it'
      : 'a poll for KV events failed; is tried again, and after several failures what the worker holds is guessed';
    if (!this.#said.has(what)) logger.warn(what, { worker: name, reason });
    this.#said.add(what);
    const delayMs = hasNoRoute
      ? BACK_OFF_MAX_MS
      : Math.min(BACK_OFF_MAX_MS, BACK_OFF_FIRST_MS * 2 ** (this.#failures - 1));
    this.#schedule(delayMs * (0.5 + random() / 2));
  }

  /** Hands on the events of an answer; returns how many there are. */
  #take(body: string): number {
    const { protocol, counts, logger, name } = this.#options;
    let events: readonly PolledEvent[];
    try {
      events = protocol.read(body);
    } catch (error) {
      // What it said is lost, removals perhaps: too much must not be promised.
      counts.badFrames += 1;
      this.#forgetIds();
      this.#clear();
      throw error;
    }
    if (events.length === 0) {
      if (!this.#isFollowed) this.#sayNone();
      return 0;
    }
    counts.messages += 1;
    if (!this.#isFollowed) {
      this.#isFollowed = true;
      this.#options.follow(true);
      logger.info('KV events of a polled worker come', { worker: name, firstId: events[0]!.id });
    }
    for (const event of events) {
      this.#check(event, events.length);
      this.#lastIds.set(event.rank, event.id);
      this.#translator.write(event, this.#writer);
    }
    this.#writer.flush();
    this.#isAnswerLost = false;
    this.#largest = Math.max(this.#largest, events.length);
    return events.length;
  }

  /** Clears what cannot be continued. A rank that is heard for the first time may begin anywhere. */
  #check({ id, rank }: PolledEvent, answered: number): void {
    const { counts, protocol, blockSize } = this.#options;
    const last = this.#lastIds.get(rank);
    if (last === undefined) counts.lostBatches += id;
    if (last === undefined || last === null || id === last + 1) return;
    if (id <= last) {
      counts.restarts += 1;
      this.#lastIds.clear();
      this.#translator = protocol.createTranslator(blockSize);
    } else {
      counts.gaps += 1;
      counts.lostBatches += id - last - 1;
      counts.clearedRanks += 1;
      this.#sayGap(id - last - 1, answered);
    }
    // Blocks of all ranks are one holder: those of one cannot be forgotten alone.
    this.#clear();
  }

  #clear(): void {
    this.#writer.discard();
    if (this.#isFollowed) this.#options.clear();
  }

  #forgetIds(): void {
    for (const rank of this.#lastIds.keys()) this.#lastIds.set(rank, null);
  }

  /** What is known is too old to be trusted. */
  #unfollow(): void {
    if (!this.#isFollowed) return;
    this.#forgetIds();
    this.#isFollowed = false;
    this.#options.follow(false);
  }

  #sayGap(lost: number, answered: number): void {
    const { logger, name } = this.#options;
    const isFull = answered >= Math.max(this.#largest, FULL_ANSWER_MIN);
    let cause: GapCause = isFull ? 'overrun' : 'otherPoller';
    if (this.#isAnswerLost) cause = 'lostAnswer';
    if (this.#said.has(cause)) return;
    this.#said.add(cause);
    logger.warn(`KV events are missing and the worker counts as empty: ${GAP_CAUSES[cause]}`, {
      worker: name,
      lost,
      answered,
    });
  }

  #sayNone(): void {
    const { logger, name } = this.#options;
    const message =
      'no KV events come yet: what the worker holds is guessed until they do. If it goes on, set event_buffer_max_size and enable_block_reuse in the kv_cache_config of the server, and see that nothing else polls it';
    if (!this.#said.has(message)) logger.info(message, { worker: name });
    this.#said.add(message);
  }
}
