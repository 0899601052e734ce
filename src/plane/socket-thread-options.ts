/**
 * What a socket thread is made of: its place among the others, its half of the shared memory, and what it asks the rest of
 * its unit. Built by SocketUnit on the thread itself.
 */

import type { EngineAdapter } from '../engines/contract.js';
import type { AnswerClient } from '../engines/link/contract.js';
import type { Limits } from '../limits.js';
import type { DetokenizerTable } from '../preprocess/detokenizer.js';
import type { Ledger } from '../router/ledger.js';
import type { Clock } from '../runtime/clock.js';
import type { FaultGuard } from '../runtime/fault-guard.js';
import type { AttemptFailure } from './attempt.js';
import type { DecisionLog } from './decision-log.js';
import type { PlaneObserver } from './observer.js';
import type { ProcessBoard } from './process-board.js';
import type { WorkerActivity } from './worker-activity.js';

/** What a socket thread is made of. */
export interface SocketThreadOptions {
  /** Which of the process's socket threads this is, from 0. */
  readonly index: number;
  /** Socket threads of the process. */
  readonly threads: number;
  readonly clock: Clock;
  readonly guard: FaultGuard;
  readonly limits: Limits;
  /** Owner epoch of adopted reservations; differs from every pool thread's. */
  readonly epoch: number;
  readonly ledger: Ledger;
  readonly client: AnswerClient;
  /** Its doorbell, which pool threads ring. */
  readonly bellMemory: SharedArrayBuffer;
  /** The state of the whole process. */
  readonly board: ProcessBoard;
  readonly observer: PlaneObserver;
  readonly activity: WorkerActivity;
  /** Its last decisions. */
  readonly decisions: DecisionLog;
  /** Lower-case name of the header that names a session; '': sessions are switched off. */
  readonly sessionHeader: string;
  /** Milliseconds after which a request for a model without a token is sent to a second worker; 0: never. */
  readonly hedgeAfterMs: (model: string) => number;
  /** Origin of the worker in a slot, or null when it has left. */
  readonly originOf: (slot: number, generation: number) => string | null;
  /** The adapter of a worker that has an origin. */
  readonly adapterOf: (slot: number, generation: number) => EngineAdapter;
  readonly detokenizerTable: (tokenizer: string) => DetokenizerTable;
  readonly reportFailure: (slot: number, generation: number, failure: AttemptFailure) => void;
}
