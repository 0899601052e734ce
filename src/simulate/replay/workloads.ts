/**
 * Made workloads (replay): each stresses one thing that a routing policy can get wrong, so that none is tuned to one trace.
 * Lengths and arrivals are drawn from a seed; arrivals are on a clock of their own, which the replay scales to the load.
 */
import { ConfigError } from '../../errors.js';
import { type Random, randomInteger, seededRandom } from '../../runtime/random.js';
import type { Workload, WorkloadRequest } from './workload.js';

const BLOCK_TOKENS = 512;
/** Mean time between arrivals before scaling. */
const GAP_MS = 100;

/** Draws a workload's requests. */
class Draw {
  readonly requests: WorkloadRequest[] = [];
  readonly #random: Random;
  #nowMs = 0;
  #nextId = 0;

  constructor(seed: number) {
    this.#random = seededRandom(seed);
  }

  /** Moves the clock on by an exponential time of this mean. */
  wait(meanMs: number): void {
    this.#nowMs -= meanMs * Math.log(1 - this.#random());
  }

  /** Lengths of traffic are skewed: log-normal around `median`, with three quarters of all within a factor of 2.2. */
  length(median: number, max: number): number {
    const normal = Math.sqrt(-2 * Math.log(1 - this.#random())) * Math.cos(2 * Math.PI * this.#random());
    return Math.max(1, Math.min(max, Math.round(median * Math.exp(0.7 * normal))));
  }

  below(bound: number): number {
    return randomInteger(this.#random, bound);
  }

  /** Ids that no request has had. */
  fresh(tokens: number): number[] {
    return Array.from({ length: Math.ceil(tokens / BLOCK_TOKENS) }, () => this.#nextId++);
  }

  /** A request now: `shared` ids, whole blocks of them, then fresh tokens. Returns its ids. */
  arrive(shared: readonly number[], freshTokens: number, outputTokens: number): number[] {
    const hashIds = [...shared, ...this.fresh(freshTokens)];
    const promptTokens = shared.length * BLOCK_TOKENS + freshTokens;
    this.requests.push({ arrivalMs: this.#nowMs, promptTokens, outputTokens, hashIds });
    return hashIds;
  }
}

type Maker = (draw: Draw, requests: number) => void;

/** All requests begin with the same 24,576 tokens; each goes on alone. */
const sharedPrompt: Maker = (draw, requests) => {
  const prompt = draw.fresh(24_576);
  while (draw.requests.length < requests) {
    draw.wait(GAP_MS);
    draw.arrive(prompt, draw.length(1500, 16_000), draw.length(40, 400));
  }
};

/** An agent reads a long context and sends 4 to 12 sub-requests about it within the same moment, in 1 to 4 rounds. */
const fanOut: Maker = (draw, requests) => {
  while (draw.requests.length < requests) {
    const context = draw.fresh(draw.length(12_000, 60_000));
    for (let round = 1 + draw.below(4); round > 0; round -= 1) {
      draw.wait(8 * GAP_MS);
      for (let sibling = 4 + draw.below(9); sibling > 0; sibling -= 1)
        draw.arrive(context, draw.length(400, 4000), draw.length(200, 2000));
    }
  }
};

/** Nothing is shared. */
const noSharing: Maker = (draw, requests) => {
  while (draw.requests.length < requests) {
    draw.wait(GAP_MS);
    draw.arrive([], draw.length(5000, 60_000), draw.length(250, 2000));
  }
};

/** Turns of 400 sessions, each with the history of the last as its prefix; sessions end and new ones begin. */
function sessions(draw: Draw, requests: number, waitNext: () => void): void {
  const open: number[][] = Array.from({ length: 400 }, () => []);
  while (draw.requests.length < requests) {
    waitNext();
    const at = draw.below(open.length);
    const history = open[at]!;
    const ended = history.length === 0 || history.length > 100 || draw.below(8) === 0;
    const ids = draw.arrive(ended ? [] : history, draw.length(2000, 20_000), draw.length(250, 2000));
    // The last block is seldom full, and what it holds does not come again in the same place.
    open[at] = ids.slice(0, -1);
  }
}

/** Sessions whose requests come in bursts of 20 to 60 at once, with silence between. */
const bursts: Maker = (draw, requests) => {
  let left = 0;
  sessions(draw, requests, () => {
    if (left === 0) {
      left = 20 + draw.below(41);
      draw.wait(left * GAP_MS);
    }
    left -= 1;
  });
};

/** Sessions at an even pace. */
const multiTurn: Maker = (draw, requests) => sessions(draw, requests, () => draw.wait(GAP_MS));

/** Sessions; the last worker joins half-way, with an empty cache. */
const coldJoin: Maker = multiTurn;

const MAKERS = {
  'shared-prompt': sharedPrompt,
  'fan-out': fanOut,
  'no-sharing': noSharing,
  'multi-turn': multiTurn,
  bursts,
  'cold-join': coldJoin,
} as const satisfies Record<string, Maker>;

/** Names that `makeWorkload` knows. */
export const WORKLOAD_NAMES: readonly string[] = Object.freeze(Object.keys(MAKERS));

/** Draws `requests` requests of a workload. Throws ConfigError for an unknown name. */
export function makeWorkload(name: string, requests: number, seed: number): Workload {
  if (!Object.hasOwn(MAKERS, name))
    throw new ConfigError(`workload "${name}" is unknown; it is one of ${WORKLOAD_NAMES.join(', ')}`);
  const draw = new Draw(seed);
  MAKERS[name as keyof typeof MAKERS](draw, requests);
  return {
    name,
    traceBlockTokens: BLOCK_TOKENS,
    requests: draw.requests.slice(0, requests),
    joinsAtShare: name === 'cold-join' ? 0.5 : null,
  };
}
