/** One choice of a mock engine's answer, and what all of them add up to. Owned by the GenerationAnswer that it is part of. */
import type { SequenceOwner } from '../live-engine.js';
import type { EngineSequence } from '../sequence.js';
import type { ChoiceText } from './choice-text.js';
import type { ChoiceState, Ending, Usage } from './frame-format.js';

/** A choice from its sequence to its end. */
export interface AnswerChoice {
  readonly index: number;
  readonly promptIds: Uint32Array;
  readonly head: string;
  readonly sequence: EngineSequence<SequenceOwner>;
  /** Text under stop strings or of a whole answer; null where the text of an id goes straight into its frame. */
  readonly text: ChoiceText | null;
  /** Kept for a whole answer and for a native form. */
  readonly ids: number[];
  /** Text so far, kept for a native form. */
  shown: string;
  ending: Ending | null;
  /** Characters of the tokens so far, counted where log-probabilities are wanted. */
  textOffset: number;
  /** When its newest token came; before the first, when the request did. */
  lastMs: number;
}

/** The choice as a native form shows it. */
export function stateOf(choice: AnswerChoice, freshText: string, freshIds: readonly number[]): ChoiceState {
  const { index, promptIds, sequence, shown, ids, ending } = choice;
  return {
    index,
    promptIds,
    cachedTokens: sequence.cachedTokens,
    text: shown,
    freshText,
    ids,
    freshIds,
    ending,
  };
}

/** Counts of all choices; those of one prompt, `n` of them, share it. */
export function usageOf(choices: Iterable<AnswerChoice>, n: number): Usage {
  let completionTokens = 0;
  let cachedTokens = 0;
  let promptTokens = 0;
  for (const choice of choices) {
    completionTokens += choice.sequence.generated;
    if (choice.index % n !== 0) continue;
    promptTokens += choice.promptIds.length;
    cachedTokens += choice.sequence.cachedTokens;
  }
  return { promptTokens, completionTokens, cachedTokens };
}
