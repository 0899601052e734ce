/**
 * Answers of /generate as SGLang writes them, whole or as frames, cumulative or incremental; `completion_tokens` counts from
 * the start in both. Pure. Source: `_handle_batch_output` of sglang/srt/managers/tokenizer_manager.py.
 *
 *     data: {"text":" a","output_ids":[7],"meta_info":{"id":"x","finish_reason":null,"prompt_tokens":3,…}}\n\n
 */
import type { ChoiceState, Ending, NativeForm } from '../openai/frame-format.js';

/** Log-probabilities of drawn tokens: `[logprob, id, text]`, and the likeliest of each. */
export type GenerateLogprobs = (
  ids: readonly number[],
  top: number,
) => { readonly drawn: readonly unknown[]; readonly tops: readonly unknown[] };

/** What the answers to one request have in common. */
export interface GenerateFormOptions {
  readonly id: string;
  readonly incremental: boolean;
  /** There are several choices, which then say their index. */
  readonly several: boolean;
  /** Null: none are wanted. */
  readonly logprobs: ((ids: readonly number[]) => ReturnType<GenerateLogprobs>) | null;
}

/** See the head of the file. */
export class GenerateForm implements NativeForm {
  readonly #options: GenerateFormOptions;

  constructor(options: GenerateFormOptions) {
    this.#options = options;
  }

  frame(state: ChoiceState): string {
    const { incremental } = this.#options;
    const answer = this.#answer(
      state,
      incremental ? state.freshText : state.text,
      incremental ? state.freshIds : state.ids,
    );
    return `data: ${JSON.stringify(answer)}\n\n`;
  }

  whole(states: readonly ChoiceState[]): string {
    const answers = states.map(state => this.#answer(state, state.text, state.ids));
    return JSON.stringify(this.#options.several ? answers : answers[0]);
  }

  #answer(state: ChoiceState, text: string, ids: readonly number[]): object {
    const { id, several, logprobs } = this.#options;
    const shown = logprobs?.(ids);
    return {
      text,
      output_ids: ids,
      meta_info: {
        id: several ? `${id}_${state.index}` : id,
        finish_reason: finishReason(state.ending, state.ids.length),
        prompt_tokens: state.promptIds.length,
        weight_version: 'default',
        total_retractions: 0,
        ...(shown === undefined
          ? {}
          : {
              output_token_logprobs: shown.drawn,
              output_token_logprobs_length: state.ids.length,
              output_top_logprobs: shown.tops,
            }),
        completion_tokens: state.ids.length,
        cached_tokens: state.cachedTokens,
      },
      ...(several ? { index: state.index } : {}),
    };
  }
}

function finishReason(ending: Ending | null, length: number): object | null {
  if (ending === null) return null;
  if (ending.finish === 'length') return { type: 'length', length };
  if (ending.finish === 'abort')
    return { type: 'abort', message: 'Aborted', status_code: null, err_type: null };
  return { type: 'stop', matched: ending.stopReason };
}
