/**
 * Which choices of an answer have lost their worker and wait to go on at another one (R5), how often each of them has,
 * and whether it may again. Owned by one request on its socket thread.
 */
import type { ErrorCode } from '../errors.js';
import type { Plan } from '../messages/records.js';
import type { Answer } from './answer.js';
import type { AttemptFailure } from './attempt.js';
import type { RequestContext } from './request-context.js';

/** Choices that are asked for together. */
export interface LostChoices {
  readonly choices: readonly number[];
  /** How the worker of the first of them failed. */
  readonly cause: AttemptFailure;
}

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
  #cause: AttemptFailure | null = null;

  constructor(context: Pick<RequestContext, 'limits' | 'observer'>) {
    this.#context = context;
  }

  /** Choices of `answer` have lost their worker. Null: they wait for `take`; else why they cannot go on. */
  lose(
    answer: Answer,
    plan: Plan,
    choices: readonly number[],
    { kind, code, message }: { kind: AttemptFailure; code: ErrorCode; message: string },
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

  /** The choices that wait, which are asked for now; null: none does. */
  take(): LostChoices | null {
    const choices = this.#waiting;
    if (choices.length === 0 || this.#cause === null) return null;
    const lost = { choices: choices.sort((a, b) => a - b), cause: this.#cause };
    this.#waiting = [];
    this.#cause = null;
    return lost;
  }

  /** The answer begins anew. */
  forget(): void {
    this.#counts.clear();
    this.#waiting = [];
    this.#cause = null;
  }
}
