/**
 * Which choices of an answer have lost their worker and wait to go on at another one (R5), how often each of them has,
 * and whether it may again. Owned by one request on its socket thread.
 */
import type { ErrorCode } from '../errors.js';
import type { Plan } from '../messages/records.js';
import type { Answer } from './answer.js';
import type { AttemptFailure } from './attempt.js';
import type { Wanted } from './request-asks.js';
import type { RequestContext } from './request-context.js';
import type { RunFailure } from './run-failure.js';

/** Why a request ends. */
export interface MigrationBar {
  readonly code: ErrorCode;
  readonly message: string;
}

/** See the head of the file. */
export class MigrationBook {
  readonly #context: Pick<RequestContext, 'limits' | 'observer'>;
  /** Times that each choice has gone on elsewhere. */
  readonly #counts = new Map<number, number>();
  #waiting: number[] = [];
  /** How the worker of the first of them failed. */
  #cause: AttemptFailure | null = null;

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
    const { limits, observer } = this.#context;
    if (limits.migrationsMax === 0) return { code, message };
    const able = plan.cannotMigrate === '' ? answer.continuation(choices) : plan.cannotMigrate;
    if (typeof able === 'string') {
      observer.migrated(kind, 'impossible');
      const why = `${message}, and the answer cannot go on at another one: ${able}`;
      return { code: 'MILLRACE_CANNOT_MIGRATE', message: why };
    }
    if (choices.some(choice => (this.#counts.get(choice) ?? 0) >= limits.migrationsMax)) {
      observer.migrated(kind, 'limit');
      const after = `after the answer had gone on at other workers ${limits.migrationsMax} times`;
      return { code, message: `${message}, ${after} (migrationsMax)` };
    }
    for (const choice of choices) this.#counts.set(choice, (this.#counts.get(choice) ?? 0) + 1);
    this.#waiting.push(...choices);
    this.#cause ??= kind;
    return null;
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
    return typeof continuation === 'string' ? continuation : { continuation, cause };
  }

  /** The answer begins anew. */
  forget(): void {
    this.#counts.clear();
    this.#waiting = [];
    this.#cause = null;
  }
}
