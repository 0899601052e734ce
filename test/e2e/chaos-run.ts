/** One run of chaos: a plane, its engines and many clients, from the first request to the process that ends by itself. */
import type { Test } from 'tap';
import { seededRandom } from '#millrace/runtime/random.js';
import { type ServerKind, TOKENIZER } from '../plane-fixture.js';
import { ChaosClient, SLOW_CLIENT_DEADLINE_MS, Tally } from './chaos-client.js';
import { ChaosFleet, MODELS } from './chaos-fleet.js';
import { ChaosPlane } from './chaos-plane.js';
import type { PlaneMemory, PlaneState } from './chaos-plane-process.js';

const CLIENTS = 64;
/** Requests before the first look at what the process holds: pools, caches and connections are made by then. */
const WARM_UP_REQUESTS = 400;
const LIMITS = {
  // The engines' answers are scripted for requests of clients.
  canaryAfterMs: 0,
  firstTokenDeadlineMs: 1000,
  betweenTokensDeadlineMs: 1000,
  totalDeadlineMs: 4000,
  slowClientDeadlineMs: SLOW_CLIENT_DEADLINE_MS,
  // Threads are killed on purpose, and more often than any should die.
  poolRestartsMax: 100,
};
const POOL_THREADS = 2;
const MIB = 1_048_576;

export interface ChaosOptions {
  readonly server: ServerKind;
  readonly seed: number;
  /** Of each round. */
  readonly requests: number;
  /** Rounds after the warm-up; the memory is looked at after each. */
  readonly rounds: number;
  /**
   * Pool threads killed in the midst of each round of the first quarter. Later ones are left alone: each death costs
   * Node itself some 0.1 MiB, and a young thread's heap grows for a while, which is not the slope that is looked for.
   */
  readonly threadDeaths: number;
}

/** Memory of the plane's process, `seconds` after the start of the run. */
export interface MemorySample extends PlaneMemory {
  readonly seconds: number;
}

export interface ChaosResult {
  readonly tally: Tally;
  /** `millrace_requests_ended_total` by cause. */
  readonly ended: Readonly<Record<string, number>>;
  /** `millrace_requests_accepted_total`. */
  readonly accepted: number;
  readonly faults: Readonly<Record<string, number>>;
  readonly threadDeaths: number;
  /** Idle, without clients, after the warm-up and after the run. */
  readonly before: PlaneState;
  readonly after: PlaneState;
  readonly samples: readonly MemorySample[];
  readonly seconds: number;
  /** The plane's process once the plane was closed. */
  readonly closed: { readonly timers: number; readonly exitCode: unknown };
}

/** MiB per minute by which the samples of the second half grow: the slope of their least-squares line. */
export function slopeMibPerMinute(samples: readonly MemorySample[], of: 'rss' | 'heapUsed'): number {
  const points = samples
    .slice(samples.length >> 1)
    .map(sample => ({ x: sample.seconds / 60, y: sample[of] / MIB }));
  const mean = (values: readonly number[]): number =>
    values.reduce((sum, value) => sum + value, 0) / values.length;
  const [x, y] = [mean(points.map(point => point.x)), mean(points.map(point => point.y))];
  const covariance = mean(points.map(point => (point.x - x) * (point.y - y)));
  return covariance / mean(points.map(point => (point.x - x) ** 2));
}

/** Timers of a plane at rest: the sweep, and for each worker that of its next probe and of its next scrape. */
export const idleTimers = ({ readyWorkers }: PlaneState): number => 1 + 2 * readyWorkers;

/**
 * Sockets of a plane at rest: the one that listens, the channel to the test, and to each worker a kept connection or two,
 * because a health check and a scrape may meet.
 */
export const idleSockets = ({ readyWorkers }: PlaneState): number => 2 + 2 * readyWorkers;

/** Kinds of descriptors of which there are more than before; sockets have their own bound. */
export function surplusDescriptors(state: PlaneState, before: PlaneState): string[] {
  // Node keeps the file open that a thread was reading when it was terminated: one per death, however many requests came.
  const file = (before.fds.file ?? 0) + state.restarts;
  const bounds: Record<string, number> = { ...before.fds, file, socket: idleSockets(state) };
  return Object.entries(state.fds)
    .filter(([kind, count]) => count > (bounds[kind] ?? 0))
    .map(([kind, count]) => `${count} ${kind}`);
}

const isNoMore = (state: PlaneState, before: PlaneState): boolean =>
  surplusDescriptors(state, before).length === 0 && state.threads <= before.threads;

class ChaosRun {
  readonly #options: ChaosOptions;
  readonly #plane: ChaosPlane;
  readonly #fleet: ChaosFleet;
  readonly #tally = new Tally();
  readonly #samples: MemorySample[] = [];
  #threadDeaths = 0;

  constructor(options: ChaosOptions, plane: ChaosPlane, fleet: ChaosFleet) {
    this.#options = options;
    this.#plane = plane;
    this.#fleet = fleet;
  }

  async run(): Promise<ChaosResult> {
    const { seed, rounds } = this.#options;
    const plane = this.#plane;
    await plane.stateWhen(({ readyWorkers }) => readyWorkers === this.#fleet.urls.length);
    await this.#send(WARM_UP_REQUESTS, seed, 0);
    const before = await plane.stateWhen(state => this.#isIdle(state));
    const startedMs = performance.now();
    for (let round = 1; round <= rounds; round++) {
      const deaths = round <= Math.ceil(rounds / 4) ? this.#options.threadDeaths : 0;
      await this.#send(this.#options.requests, seed + round, deaths);
      await this.#sample(startedMs);
    }
    const seconds = (performance.now() - startedMs) / 1000;
    const after = await plane.stateWhen(state => this.#isIdle(state) && isNoMore(state, before));

    const metrics = await plane.metrics();
    const of = (name: string): [string, number][] =>
      [...metrics].filter(([series]) => series.startsWith(name));
    const ended = of('millrace_requests_ended_total').map(
      ([series, count]) => [/cause="(\w+)"/.exec(series)![1]!, count] as const,
    );
    return {
      tally: this.#tally,
      ended: Object.fromEntries(ended),
      accepted: of('millrace_requests_accepted_total').reduce((sum, [, count]) => sum + count, 0),
      faults: this.#fleet.faults,
      threadDeaths: this.#threadDeaths,
      before,
      after,
      samples: this.#samples,
      seconds,
      closed: await plane.close(),
    };
  }

  /** Nothing is held for requests, the engines are all up, and the threads run. */
  #isIdle(state: PlaneState): boolean {
    const { leftovers, readyWorkers, poolThreads } = state;
    const isUp = readyWorkers === this.#fleet.urls.length && poolThreads === POOL_THREADS;
    return isUp && leftovers.length === 0 && this.#fleet.running === 0 && state.timers <= idleTimers(state);
  }

  /** Sends requests from all clients at once, then closes their connections. */
  async #send(requests: number, seed: number, threadDeaths: number): Promise<void> {
    const deaths = seededRandom(seed);
    const deathAt = Array.from({ length: threadDeaths }, () => Math.floor(deaths() * requests));
    deathAt.sort((a, b) => b - a);
    let next = 0;
    const work = async (client: ChaosClient): Promise<void> => {
      while (next < requests) {
        const at = next++;
        if (at >= (deathAt.at(-1) ?? requests)) await this.#killThread(deathAt.pop()!);
        await client.one();
      }
      client.close();
    };
    await Promise.all(
      Array.from({ length: CLIENTS }, (_, index) => {
        const random = seededRandom(seed * CLIENTS + index);
        return work(new ChaosClient(this.#plane.port, random, this.#fleet, this.#tally));
      }),
    );
  }

  /** Memory at rest: what is in flight would hide a slope of a MiB. */
  async #sample(startedMs: number): Promise<void> {
    await this.#plane.stateWhen(state => this.#isIdle(state));
    const memory = await this.#plane.memory();
    this.#samples.push({ seconds: (performance.now() - startedMs) / 1000, ...memory });
  }

  async #killThread(at: number): Promise<void> {
    this.#threadDeaths++;
    await this.#plane.killPoolThread(at);
  }
}

/** Carries out a run. The processes and engines that it starts end with it, or with the test. */
export async function runChaos(t: Test, options: ChaosOptions): Promise<ChaosResult> {
  const fleet = await ChaosFleet.start(t, options.seed);
  const plane = await ChaosPlane.start(
    {
      workers: fleet.urls,
      models: { [MODELS[0]]: { tokenizer: TOKENIZER } },
      poolThreads: POOL_THREADS,
      httpServer: options.server,
      policy: 'round-robin',
      limits: LIMITS,
    },
    options.seed,
  );
  t.teardown(() => plane.kill());
  return new ChaosRun(options, plane, fleet).run();
}
