/**
 * Which choices of an answer have lost their worker and wait to go on at another one (R5), how often each of them has,
 * and whether it may again. Owned by one request on its socket thread.
 */
import type { FailureCause } from '../engines/health-contract.js';
import type { ErrorCode } from '../errors.js';
import type { MigrationOutcome } from '../frontend/metrics.js';
import type { Plan } from '../messages/records.js';
import type { Answer } from './answer.js';
import type { Wanted } from './request-asks.js';
import type { RequestContext } from './request-context.js';
import type { RunFailure } from './run-failure.js';

/** Why a request ends. */
export interface MigrationBar {
  readonly code: ErrorCode;
  readonly message: string;
}

/** Why choices cannot go on, for the client and for the metric; `outcome`, null: it is switched off. */
interface Bar {
  readonly outcome: Extract<MigrationOutcome, 'impossible' | 'limit'> | null;
  readonly why: string;
}

/** See the head of the file. */
export class MigrationBook {
  readonly #context: Pick<RequestContext, 'limits' | 'observer'>;
  /** Times that each choice has gone on elsewhere. */
  readonly #counts = new Map<number, number>();
  #waiting: number[] = [];
  /** How the worker of the first of them failed. */
  #cause: FailureCause | null = null;

  constructor(context: Pick<RequestContext, 'limits' | 'observer'>) {
    this.#context = context;
  }

  /** Choices of `answer` have lost their worker. Null: they wait for `take`; else why they cannot go on. */
  lose(
    answer: Answer,
    plan: Plan,
    choices: readonly number[],
    { kind, code, message }: RunFailure,
  ): MigrationBar | null {
    const bar = this.#bar(answer, plan, choices);
    if (bar !== null) {
      const { outcome, why } = bar;
      if (outcome !== null) this.#context.observer.migrated(kind, outcome);
      if (outcome === 'impossible')
        return { code: 'MILLRACE_CANNOT_MIGRATE', message: `${message}, and ${why}` };
      return { code, message: why === '' ? message : `${message}, ${why}` };
    }
    this.move(answer, choices);
    this.#waiting.push(...choices);
    this.#cause ??= kind;
    return null;
  }

  /** What is to be asked so that choices which still run go on elsewhere; null: they cannot. */
  wantedMove(
    answer: Answer,
    plan: Plan,
    choices: readonly number[],
  ): Pick<Wanted, 'continuation' | 'isLast'> | null {
    if (this.#bar(answer, plan, choices) !== null) return null;
    const continuation = answer.continuation(choices);
    if (typeof continuation === 'string') return null;
    return { continuation, isLast: this.#areAtLimit(choices, 1) };
  }

  /** Choices go on elsewhere, as `wantedMove` allowed: nothing comes of their worker any more. */
  move(answer: Answer, choices: readonly number[]): void {
    for (const choice of choices) this.#counts.set(choice, (this.#counts.get(choice) ?? 0) + 1);
    answer.cutOff(choices);
  }

  /** What is to be asked for the choices that wait, which do not any more; null: none does. Else why they cannot go on. */
  take(answer: Answer): Wanted | string | null {
    const choices = this.#waiting.sort((a, b) => a - b);
    const cause = this.#cause;
    if (choices.length === 0) return null;
    this.#waiting = [];
    this.#cause = null;
    // Since they were lost another choice can have grown too long for all of them.
    const continuation = answer.continuation(choices);
    if (typeof continuation === 'string') return continuation;
    return { continuation, cause, isLast: this.#areAtLimit(choices, 0), beside: null };
  }

  /** The answer begins anew. */
  forget(): void {
    this.#counts.clear();
    this.#waiting = [];
    this.#cause = null;
  }

  #bar(answer: Answer, plan: Plan, choices: readonly number[]): Bar | null {
    const { migrationsMax } = this.#context.limits;
    if (migrationsMax === 0) return { outcome: null, why: '' };
    const able = plan.cannotMigrate === '' ? answer.continuation(choices) : plan.cannotMigrate;
    if (typeof able === 'string')
      return { outcome: 'impossible', why: `the answer cannot go on at another one: ${able}` };
    if (!this.#areAtLimit(choices, 0)) return null;
    const why = `after the answer had gone on at other workers ${migrationsMax} times (migrationsMax)`;
    return { outcome: 'limit', why };
  }

  /** One of them has gone on as often as is allowed, or has after `more` times. */
  #areAtLimit(choices: readonly number[], more: number): boolean {
    const { migrationsMax } = this.#context.limits;
    return choices.some(choice => (this.#counts.get(choice) ?? 0) + more >= migrationsMax);
  }
}
