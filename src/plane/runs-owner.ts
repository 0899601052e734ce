/**
 * The border inside a request (R5): what the workers' side of it, request-runs.ts, sees of the client's side, request.ts. One
 * object on the socket thread; a type only.
 */
import type { ErrorCode, ErrorDetail } from '../errors.js';
import type { PlanPlacement } from '../messages/records.js';
import type { Answer } from './answer.js';
import type { CallRun, RunEvents } from './call-run.js';

/** The request, as its runs see it. */
export interface RunsOwner {
  /** Null: none has begun. */
  readonly answer: Answer | null;
  /** Of the answer something was sent, which cannot be taken back. */
  readonly isShown: boolean;
  /** A token of the answer has come. */
  readonly hasToken: boolean;
  /** The client does not read: the engines are to wait. */
  readonly isPaused: boolean;
  eventsOf(run: CallRun): RunEvents;
  /** Tells the client which worker answers, if nothing was sent yet. */
  announce(worker: string, placement: PlanPlacement): void;
  /** A run is over, and nothing of its choices is missing. */
  onRunDone(run: CallRun): void;
  /** The answer begins anew. */
  forgetAnswer(): void;
  fail(code: ErrorCode, message: string, detail?: ErrorDetail): void;
}
