/**
 * What workers say of themselves as parts of a hand-over (R5): their probes tell versions, KV types and addresses, and the
 * bootstrap servers of Mooncake the ids of their engines, for which they are asked here until they answer. What the
 * configuration says comes first (disagg-models.ts). Owned by the fleet, on the core's thread.
 */
import type { RegisteredWorker } from '../discovery/registry.js';
import type { HandoverFacts, WorkerCapabilities } from '../engines/contract.js';
import { bootstrapOrigin } from '../engines/disagg/vllm-mooncake.js';
import type { WorkerAsk } from '../engines/health-contract.js';
import { isRecord, objectOf } from '../engines/probe-answers.js';
import type { Limits } from '../limits.js';
import type { Clock, Timer } from '../runtime/clock.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { Logger } from '../runtime/logger.js';

const QUERY_PATH = '/query';
const ENGINE_ID_CHARS_MAX = 1024;

/** Of one worker; null: it does not say. */
export interface PeerSays {
  readonly version: string | null;
  readonly handover: HandoverFacts;
  /** Mooncake: id of its engine. */
  readonly engineId: string | null;
}

/** A worker that has said nothing. */
export const SAYS_NOTHING: PeerSays = Object.freeze({
  version: null,
  handover: Object.freeze({ role: null, kvDtype: null, bootstrapPort: null, infoEndpoint: null }),
  engineId: null,
});

/** Where a bootstrap server is that is to be asked for the id of its engine. */
export interface BootstrapServer {
  readonly host: string;
  readonly port: number;
}

/** What is needed of the fleet. */
export interface PeerFactsOptions {
  readonly ask: WorkerAsk;
  readonly clock: Clock;
  readonly guard: FaultGuard;
  readonly logger: Logger;
  readonly limits: Pick<Limits, 'probeDeadlineMs' | 'probeBytesMax' | 'probePeriodMs'>;
  /** An engine id was learned. */
  readonly onChange: () => void;
}

interface Entry {
  says: PeerSays;
  /** Until the next look for the engine id. */
  timer: Timer | null;
}

/** See the head of the file. */
export class PeerFacts {
  readonly #options: PeerFactsOptions;
  readonly #entries = new Map<number, Entry>();

  constructor(options: PeerFactsOptions) {
    this.#options = options;
  }

  /** What the worker in a slot says. */
  says(slot: number): PeerSays {
    return this.#entries.get(slot)?.says ?? SAYS_NOTHING;
  }

  /**
   * A probe was answered: the worker has begun, or comes again. `server`: to be asked for the id of its engine; null: nobody
   * needs it. True: it says something else than before.
   */
  learn(worker: RegisteredWorker, facts: WorkerCapabilities, server: BootstrapServer | null): boolean {
    const { version, handover = SAYS_NOTHING.handover } = facts;
    const before = this.#entries.get(worker.slot);
    before?.timer?.cancel();
    // An engine that comes again may have another id; the old one is kept until it is known.
    const says = { version, handover, engineId: before?.says.engineId ?? null };
    const entry: Entry = { says, timer: null };
    this.#entries.set(worker.slot, entry);
    if (server !== null) this.#askEngineId(worker, entry, server, true);
    return JSON.stringify(before?.says) !== JSON.stringify(says);
  }

  /** The worker in a slot has left. */
  forget(slot: number): void {
    this.#entries.get(slot)?.timer?.cancel();
    this.#entries.delete(slot);
  }

  /** Asks nobody any more. */
  stop(): void {
    for (const slot of [...this.#entries.keys()]) this.forget(slot);
  }

  #askEngineId(worker: RegisteredWorker, entry: Entry, server: BootstrapServer, isFirst: boolean): void {
    const { ask, guard, limits } = this.#options;
    const origin = bootstrapOrigin(server);
    const call = { origin, method: 'GET', path: QUERY_PATH, head: [], body: new Uint8Array(0) };
    const isCurrent = (): boolean => this.#entries.get(worker.slot) === entry;
    ask(call, limits.probeDeadlineMs, limits.probeBytesMax).then(
      answer =>
        guard.run(() => {
          if (!isCurrent()) return;
          const engineId = readEngineId(objectOf(answer), worker.rank);
          if (engineId === null) {
            const reason = `${origin}${QUERY_PATH} answered ${answer.status} and names no engine of this worker alone`;
            this.#askLater(worker, entry, server, isFirst ? reason : null);
          } else if (engineId !== entry.says.engineId) {
            entry.says = { ...entry.says, engineId };
            this.#options.onChange();
          }
        }),
      (error: Error) =>
        guard.run(() => {
          if (isCurrent()) this.#askLater(worker, entry, server, isFirst ? error.message : null);
        }),
    );
  }

  /** `reason`: told to the operator; null: it was. */
  #askLater(worker: RegisteredWorker, entry: Entry, server: BootstrapServer, reason: string | null): void {
    const { clock, limits, logger } = this.#options;
    if (reason !== null)
      logger.warn('the id of an engine is not known: set bootstrap or kvEngineId of the worker', {
        worker: worker.url,
        bootstrap: bootstrapOrigin(server),
        reason,
      });
    entry.timer = clock.after(limits.probePeriodMs, () => this.#askEngineId(worker, entry, server, false));
  }
}

/** The engine id of a rank in what a bootstrap server says; null: none, or several that cannot be told apart. */
function readEngineId(said: Readonly<Record<string, unknown>> | null, rank: number | null): string | null {
  const ranks = Object.keys(said ?? {});
  const entry = rank === null && ranks.length === 1 ? said?.[ranks[0]!] : said?.[String(rank)];
  const id = isRecord(entry) ? entry.engine_id : null;
  return typeof id === 'string' && id.length > 0 && id.length <= ENGINE_ID_CHARS_MAX ? id : null;
}
