/**
 * What the two forms of an answer whose text the engine makes have in common (relay and relayIds mode): how far it has come,
 * what it has counted, and what another worker needs to go on with it. Pure; the request that owns the answer does the I/O.
 */
import type { FrameBatch } from '../engines/contract.js';
import type { Usage } from '../messages/delta.js';
import type { Continuation, Plan } from '../messages/records.js';
import type { Answer } from './answer.js';
import type { BatchOutcome } from './batch-outcome.js';
import type { ContinuedOutput } from './continued-relay.js';
import type { RelayRecord } from './relay-record.js';
import type { CallRange } from './token-answer.js';

/** See the head of the file. */
export abstract class RelayedAnswer implements Answer {
  protected readonly plan: Plan;
  /** Null: the answer cannot migrate. */
  protected readonly record: RelayRecord | null;
  protected tokens = 0;
  /** The engine has said that there is no more. */
  protected isDone = false;
  /** As the engine has told it. */
  protected toldUsage: Usage | null = null;
  /** Once the answer has gone on at another worker. */
  protected continued: ContinuedOutput | null = null;

  constructor(plan: Plan, record: RelayRecord | null) {
    this.plan = plan;
    this.record = record;
  }

  get isComplete(): boolean {
    return this.isDone || this.record?.hasFinished === true;
  }

  /** The engine's usage; until it has come, the tokens seen: by their ids in relayIds mode, else one per frame. */
  usage(): Usage {
    const { promptTokens, prefillCachedTokens } = this.plan;
    const isCut = !this.isDone && this.record?.hasFinished === true;
    if (isCut || this.continued !== null) {
      // No worker has told it; the tokens of the prompt are estimated where its ids are not known.
      const { identity, tokens } = this.record!;
      return {
        promptTokens: identity?.promptIds?.length ?? promptTokens,
        completionTokens: tokens,
        cachedTokens: null,
      };
    }
    const usage = this.toldUsage ?? { promptTokens, completionTokens: this.tokens, cachedTokens: null };
    return { ...usage, cachedTokens: prefillCachedTokens ?? usage.cachedTokens };
  }

  openChoices({ choiceBase, choices }: CallRange): number[] {
    if (this.isDone) return [];
    const all = Array.from({ length: choices }, (_, at) => choiceBase + at);
    const { record } = this;
    return record === null ? all : all.filter(index => !record.choices[index]!.hasFinished);
  }

  continuation(choices: readonly number[]): Continuation | string {
    return this.record === null ? this.plan.cannotMigrate : this.record.continuation(choices);
  }

  cutOff(choices: readonly number[]): void {
    this.record!.cutOff(choices);
    this.continued ??= this.openContinued();
  }

  release(): void {
    this.record?.release();
  }

  abstract take(batch: FrameBatch, call: CallRange): BatchOutcome;
  abstract takeUnary(body: Buffer): number;
  abstract endStream(): void;
  abstract unaryBody(): string;

  /** Where the tokens of the workers after the first one go. */
  protected abstract openContinued(): ContinuedOutput;
}
