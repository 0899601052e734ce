/** What is told of the workers to operators: for metrics, and for GET /admin/workers. Core; reads only. */
import type { RegisteredWorker } from '../discovery/registry.js';
import type { WorkerReadings } from '../frontend/worker-metrics.js';
import type { WorkerSplit } from '../messages/disagg.js';
import type { WorkerModel } from '../messages/records.js';
import type { EventEndpoints } from '../router/events/contract.js';
import type { LoadTable } from '../router/load-table.js';
import type { Fleet, LINK_EVENTS } from './fleet.js';
import { workerName } from './routing-hints.js';
import type { LinkReport, WorkerLinks } from './worker-links.js';

/** Nobody watches the workers of a plane that has failed or is closing. */
const NO_COUNTS: Pick<WorkerReadings, 'failures' | 'canaries'> = { failures: {}, canaries: {} };

/** A worker as an operator sees it. */
export interface WorkerReport {
  readonly url: string;
  readonly rank: number | null;
  readonly state: RegisteredWorker['state'];
  /** As its probe says; as configured until then. */
  readonly engine: string;
  /** Of these the LoRA adapters are in `adapters` as well. */
  readonly models: readonly string[];
  /** Where it has it from, and the model that it is for; null: not told. */
  readonly adapters: readonly {
    readonly name: string;
    readonly parent: string | null;
    readonly path: string | null;
  }[];
  /** How deep it sleeps; null: it does not. */
  readonly sleepLevel: RegisteredWorker['sleepLevel'];
  readonly blockSize: number | null;
  readonly totalBlocks: number | null;
  /** Its part in hand-overs and where it is reached for them; null: it does all for nobody but itself. */
  readonly split: WorkerSplit | null;
  /** What requests of this plane have reserved there. */
  readonly load: {
    readonly requests: number;
    readonly prefillTokens: number;
    readonly decodeBlocks: number;
  };
  /** What it says of itself; null: unknown. */
  readonly reported: {
    readonly running: number | null;
    readonly waiting: number | null;
    readonly kvUsage: number | null;
  };
  /** Where its KV events are taken from, LINK_EVENTS for its worker link; null: nowhere. */
  readonly events: EventEndpoints | typeof LINK_EVENTS | null;
  /** Its worker link; null: it never had one. */
  readonly link: LinkReport | null;
  /** As in WorkerReadings. */
  readonly failures: WorkerReadings['failures'];
  readonly canaries: WorkerReadings['canaries'];
}

/** For the metrics. */
export function workerReadings(
  fleet: Fleet,
  loadTable: LoadTable,
  links: WorkerLinks | null,
): WorkerReadings[] {
  return fleet.registry.list().map(worker => ({
    worker: workerName(worker.url, worker.rank),
    state: worker.state,
    role: fleet.splitOf(worker)?.role ?? 'both',
    prefillTokens: loadTable.readActivePrefillTokens(worker.slot, worker.generation),
    ...(fleet.countsOf(worker) ?? NO_COUNTS),
    link: links?.reportOf(worker.url) ?? null,
  }));
}

const adaptersOf = (models: readonly WorkerModel[]): WorkerReport['adapters'] =>
  models
    .filter(({ adapter }) => adapter === true)
    .map(({ id, parent = null, path = null }) => ({ name: id, parent, path }));

/** For operators. */
export function workerReports(fleet: Fleet, loadTable: LoadTable, links: WorkerLinks | null): WorkerReport[] {
  return fleet.registry.list().map(worker => {
    const { slot, generation, url, rank, state, engine, facts, sleepLevel } = worker;
    const scraped = loadTable.snapshot(slot)?.scraped;
    const { failures, canaries } = fleet.countsOf(worker) ?? NO_COUNTS;
    return {
      url,
      rank,
      state,
      engine: facts?.engine ?? engine,
      models: facts?.models.map(({ id }) => id) ?? [],
      adapters: adaptersOf(facts?.models ?? []),
      sleepLevel,
      blockSize: facts?.blockSize ?? null,
      totalBlocks: facts?.totalBlocks ?? null,
      split: fleet.splitOf(worker) ?? null,
      load: {
        requests: loadTable.readRequests(slot, generation),
        prefillTokens: loadTable.readActivePrefillTokens(slot, generation),
        decodeBlocks: loadTable.readDecodeBlocks(slot, generation),
      },
      reported: scraped ?? { running: null, waiting: null, kvUsage: null },
      events: fleet.eventsOf(worker),
      link: links?.reportOf(url) ?? null,
      failures,
      canaries,
    };
  });
}
