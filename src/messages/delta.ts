/** Delta: a piece of an answer, in the terms of the engine and of `generate()`; HTTP formats are made from it. */

/** Why a choice ended, in OpenAI's words. */
export type FinishReason = 'stop' | 'length' | 'tool_calls' | 'content_filter';

/** Token counts of a request, summed over its choices. */
export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Prompt tokens that the engine took from its prefix cache; null when it does not say. */
  readonly cachedTokens: number | null;
}

/** A token and its log-probability. */
export interface TokenLogprob {
  /** As text; bytes that are no whole characters are replaced, as decoders do. */
  readonly text: string;
  /** Exactly. */
  readonly bytes: Uint8Array;
  /** Natural logarithm. */
  readonly logprob: number;
}

/** A generated token with those that could have come in its place. */
export interface TokenLogprobs extends TokenLogprob {
  /** In the engine's order; the generated token can be among them. */
  readonly top: readonly TokenLogprob[];
  /** Characters (code points) of the choice's text before it. */
  readonly textOffset: number;
}

/** A piece of one choice. Fields that are absent did not change with this piece. */
export interface Delta {
  /** Choice that this piece belongs to, 0-based. */
  readonly index: number;
  /** Token ids that were generated, in token mode; the text of the last ones may come with a later piece. */
  readonly ids?: readonly number[];
  readonly text?: string;
  /** Text of the model's reasoning, where the engine tells it apart. */
  readonly reasoning?: string;
  /** Parts of tool calls as the engine sent them (`delta.tool_calls`). */
  readonly toolCalls?: readonly unknown[];
  /** Log-probabilities of the tokens whose text begins in this piece, in token mode. */
  readonly logprobs?: readonly TokenLogprobs[];
  /** In the relay modes: `logprobs` as the engine sent it. */
  readonly engineLogprobs?: unknown;
  /** The choice has ended. */
  readonly finish?: FinishReason;
  /** With `finish`: the stop string or token id that ended the choice. */
  readonly stopReason?: string | number;
  /** Totals of the request, in the last piece. */
  readonly usage?: Usage;
}
