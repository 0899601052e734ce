/**
 * A replay: one workload under several policies, at a load that is calibrated. Load is prefill compute seconds offered
 * under round-robin ÷ worker seconds: arrivals are stretched until a round-robin run has that load, and every policy then
 * sees the same arrivals. Joins the router and the mock engines; one thread, no I/O.
 */
import { ENGINE_SETTING_RANGES, type EngineSettings, resolveEngineSettings } from '../engine-settings.js';
import { type FleetOptions, type FleetResult, runFleet } from './fleet.js';
import { type PreparedWorkload, prepare, type Workload } from './workload.js';

/** KV of a worker by default: 1.5 million tokens in blocks of 64. */
export const REPLAY_BLOCKS = 23_438;
const CALIBRATION_RUNS_MAX = 6;
const CALIBRATION_ERROR_MAX = 0.01;

/** What a replay is made of. */
export interface ReplayOptions extends Pick<FleetOptions, 'workers' | 'seed' | 'clock' | 'addon'> {
  readonly policies: readonly string[];
  /** Target load; 0.7 by default of the command. */
  readonly load: number;
  readonly engine: Partial<EngineSettings>;
  /** Points of the load record of each run. */
  readonly samples: number;
  /** Called before each run. */
  readonly onRun: (what: string) => void;
}

/** What a replay gave. */
export interface ReplayResult {
  readonly workload: PreparedWorkload;
  readonly engine: EngineSettings;
  /** Virtual milliseconds per millisecond of the workload's clock. */
  readonly timeScale: number;
  /** Load and decode seconds ÷ worker seconds of the round-robin run that the scale was found with. */
  readonly load: number;
  readonly decodeLoad: number;
  readonly runs: ReadonlyMap<string, FleetResult>;
}

/** Calibrates and runs. Throws ConfigError for an unknown policy. */
export function replay(workload: Workload, options: ReplayOptions): ReplayResult {
  const engine = resolveEngineSettings({
    numGpuBlocks: REPLAY_BLOCKS,
    ...options.engine,
    maxModelLen: maxModelLen(options.engine),
  });
  const prepared = prepare(workload, engine.blockSize);
  const { workers, seed, samples, clock, addon } = options;
  const base = { workers, engine, split: null, seed, samples, clock, addon };
  let timeScale = firstScale(prepared, options.load, workers);
  let roundRobin = null as FleetResult | null;
  for (let run = 0; run < CALIBRATION_RUNS_MAX; run += 1) {
    options.onRun(`${workload.name}: calibration ${run + 1}`);
    roundRobin = runFleet(prepared, { ...base, policy: 'round-robin', timeScale });
    const error = prefillLoad(roundRobin) / options.load;
    if (Math.abs(error - 1) <= CALIBRATION_ERROR_MAX) break;
    timeScale *= error;
  }
  const runs = new Map<string, FleetResult>();
  for (const policy of options.policies) {
    options.onRun(`${workload.name}: ${policy}`);
    runs.set(policy, runFleet(prepared, { ...base, policy, timeScale }));
  }
  const measured = roundRobin as FleetResult;
  return {
    workload: prepared,
    engine,
    timeScale,
    load: prefillLoad(measured),
    decodeLoad: sum(measured.decodeMs) / measured.workerMs,
    runs,
  };
}

/** The pool bounds a request, not a model: a trace may hold prompts longer than any default. */
function maxModelLen({ numGpuBlocks, blockSize }: Partial<EngineSettings>): number {
  const tokens = (numGpuBlocks ?? REPLAY_BLOCKS) * (blockSize ?? ENGINE_SETTING_RANGES.blockSize.default);
  return Math.min(tokens, ENGINE_SETTING_RANGES.maxModelLen.max);
}

/** As if nothing were cached and each token took 20 µs. */
function firstScale({ requests, spanMs }: PreparedWorkload, load: number, workers: number): number {
  const prefillMs = requests.reduce((total, { prompt }) => total + 0.02 * prompt.length, 0);
  return prefillMs / (load * workers * Math.max(spanMs, 1));
}

const sum = (values: Float64Array): number => values.reduce((total, value) => total + value, 0);

function prefillLoad(run: FleetResult): number {
  return sum(run.prefillMs) / run.workerMs;
}
