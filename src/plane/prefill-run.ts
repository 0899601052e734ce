/**
 * The prefill step of a call as it is carried out (R5): one request to a prefill worker, whose answer is kept whole or
 * dropped, under a deadline and a limit of its own. Its reservation stands for the prompt's computing and is given back
 * once, with the answer or without. Owned by the hand-over that it is part of, on the socket thread.
 */
import { strict as assert } from 'node:assert';
import type { EngineCall, EngineFault, EngineHeaders } from '../engines/client.js';
import { prefillVerdict } from '../engines/disagg/contract.js';
import { engineError } from '../engines/engine-error.js';
import type { ErrorCode } from '../errors.js';
import type { PlanStep } from '../messages/records.js';
import type { Timer } from '../runtime/clock.js';
import type { AttemptFailure } from './attempt.js';
import type { RequestContext } from './request-context.js';

/** Bytes of an error answer that are read. */
const ERROR_BODY_BYTES_MAX = 65_536;

/**
 * How a prefill ended. answered: `answer` is whole, empty where it is dropped. refused: the request itself is wrong.
 * failed: the worker's trouble; `blame`, null: it was only busy.
 */
export type PrefillOutcome =
  | { readonly kind: 'answered'; readonly answer: Buffer }
  | { readonly kind: 'refused'; readonly status: number; readonly body: string }
  | {
      readonly kind: 'failed';
      readonly blame: AttemptFailure | null;
      readonly code: ErrorCode;
      readonly message: string;
    };

/** What a prefill needs of its socket thread. */
export type PrefillContext = Pick<
  RequestContext,
  'client' | 'guard' | 'clock' | 'limits' | 'ledger' | 'originOf'
>;

/** See the head of the file. */
export class PrefillRun {
  readonly #step: PlanStep;
  readonly #context: PrefillContext;
  #onEnd: ((outcome: PrefillOutcome) => void) | null = null;
  #call: EngineCall | null = null;
  #deadline: Timer | null = null;
  #holds = true;
  #isOver = false;
  #status = 0;
  #bytes = 0;
  #chunks: Uint8Array[] = [];

  constructor(step: PlanStep, context: PrefillContext) {
    this.#step = step;
    this.#context = context;
  }

  /** Sends the request; `onEnd` is told once, unless it is aborted before. It is not called before this returns. */
  start(onEnd: (outcome: PrefillOutcome) => void): void {
    const { client, guard, clock, limits, originOf } = this.#context;
    const { slot, generation, method, path, head, body } = this.#step;
    this.#onEnd = onEnd;
    const origin = originOf.call(this.#context, slot, generation);
    if (origin === null) {
      queueMicrotask(() =>
        guard.run(() => this.#fail('unreachable', 'MILLRACE_WORKER_UNREACHABLE', 'has left')),
      );
      return;
    }
    const { prefillDeadlineMs } = limits;
    this.#deadline = clock.after(prefillDeadlineMs, () =>
      this.#fail('stalled', 'MILLRACE_WORKER_STALLED', `did not answer for ${prefillDeadlineMs} ms`),
    );
    this.#call = client.send(
      { origin, method, path, head, body, wantsRows: false },
      {
        onHead: (status, _contentType, headers) => guard.run(() => this.#onHead(status, headers)),
        onData: chunk => guard.run(() => this.#onData(chunk)),
        onRows: () => assert.fail('rows were not asked for'),
        onEnd: () => guard.run(() => this.#onAnswer()),
        onError: fault => guard.run(() => this.#onError(fault)),
      },
    );
  }

  /** The worker was found dead by others: there is nothing to wait for. */
  lost(): void {
    if (this.#call !== null) this.#fail('stalled', 'MILLRACE_WORKER_STALLED', 'is out of rotation');
  }

  /** Closes the connection, if it is still open, and tells nothing more. */
  abort(): void {
    if (this.#isOver) return;
    this.#end();
    this.#call?.abort();
  }

  #onHead(status: number, headers: EngineHeaders): void {
    if (this.#isOver) return;
    this.#status = status;
    const length = Number(headers['content-length'] ?? 0);
    if (this.#keeps && length > this.#bytesMax) this.#tooLong();
  }

  #onData(chunk: Uint8Array): void {
    if (this.#isOver || !this.#keeps) return;
    this.#bytes += chunk.length;
    if (this.#bytes > this.#bytesMax) this.#tooLong();
    else this.#chunks.push(chunk);
  }

  /** An answer that is dropped needs no memory, however long it is. */
  get #keeps(): boolean {
    return this.#status !== 200 || this.#step.answer === 'feed';
  }

  get #bytesMax(): number {
    return this.#status === 200 ? this.#context.limits.prefillAnswerBytesMax : ERROR_BODY_BYTES_MAX;
  }

  #tooLong(): void {
    const message = `answered more than ${this.#bytesMax} bytes`;
    this.#fail('protocol', 'MILLRACE_WORKER_PROTOCOL', message);
  }

  #onAnswer(): void {
    if (this.#isOver) return;
    const answer = Buffer.concat(this.#chunks);
    const status = this.#status;
    const verdict = prefillVerdict(status);
    if (verdict === 'answered') {
      this.#context.ledger.firstToken(this.#step.reservation);
      this.#tell({ kind: 'answered', answer });
    } else if (verdict === 'refused') {
      this.#tell({ kind: 'refused', status, body: answer.toString('utf8') });
    } else {
      const { code, message } = engineError(status, answer.toString('utf8'));
      const blame = code === 'MILLRACE_OVERLOADED' ? null : 'protocol';
      this.#tell({ kind: 'failed', blame, code, message });
    }
  }

  #onError({ kind }: EngineFault): void {
    if (this.#isOver) return;
    if (kind === 'aborted') {
      const message = 'the connection to the prefill worker was closed';
      this.#tell({ kind: 'failed', blame: null, code: 'MILLRACE_WORKER_DIED', message });
    } else if (kind === 'unreachable')
      this.#fail('unreachable', 'MILLRACE_WORKER_UNREACHABLE', 'cannot be reached');
    else if (kind === 'protocol')
      this.#fail('protocol', 'MILLRACE_WORKER_PROTOCOL', 'broke the HTTP protocol');
    else this.#fail('reset', 'MILLRACE_WORKER_DIED', 'broke the connection');
  }

  #fail(blame: AttemptFailure, code: ErrorCode, what: string): void {
    if (this.#isOver) return;
    const call = this.#call;
    this.#tell({ kind: 'failed', blame, code, message: `the prefill worker ${what}` });
    call?.abort();
  }

  #tell(outcome: PrefillOutcome): void {
    const onEnd = this.#onEnd!;
    this.#end();
    onEnd(outcome);
  }

  /** Gives back what it holds. */
  #end(): void {
    this.#isOver = true;
    this.#deadline?.cancel();
    this.#chunks = [];
    this.#onEnd = null;
    if (!this.#holds) return;
    this.#holds = false;
    this.#context.ledger.release(this.#step.reservation);
  }
}
