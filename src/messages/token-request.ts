/**
 * TokenRequest: the one request type that every API is an adapter onto. Made by a pool thread from the body of an
 * ASK (R3), read by the router and by the engine adapters. It never crosses a thread itself: the ASK and the PLAN do.
 */

/** The HTTP API that a request came in by. */
export type Api = 'chat' | 'completions';

/** One message of a chat prompt. */
export interface ChatMessage {
  readonly role: string;
  /** Text parts are joined; a message whose parts are not all text keeps `parts` and rules token mode out. */
  readonly text: string;
  /** The texts of the parts, where the content came in several: some templates write them one by one. */
  readonly textParts?: readonly string[];
  readonly name?: string;
  readonly hasMedia: boolean;
}

/** The prompt in the form in which the client gave it. */
export type Prompt =
  | { readonly kind: 'ids'; readonly ids: Uint32Array }
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'messages'; readonly messages: readonly ChatMessage[] };

/** How tokens are drawn; an absent field leaves it to the engine. */
export interface Sampling {
  readonly n: number;
  readonly temperature?: number;
  readonly topP?: number;
  readonly seed?: number;
  readonly presencePenalty?: number;
  readonly frequencyPenalty?: number;
}

/** When a choice ends. */
export interface Stop {
  /** Tokens to generate at most per choice; null leaves it to the context length. */
  readonly maxTokens: number | null;
  /** No stop of any kind before this many generated tokens. */
  readonly minTokens: number;
  readonly strings: readonly string[];
  readonly tokenIds: readonly number[];
  readonly ignoreEos: boolean;
  /** The matched stop string is part of the text (`include_stop_str_in_output`). */
  readonly includeStopString: boolean;
}

/** What the client wants to see of the answer. */
export interface Output {
  readonly stream: boolean;
  /** A last chunk with `usage` (`stream_options.include_usage`). */
  readonly includeUsage: boolean;
  /** `usage` on every chunk (`stream_options.continuous_usage_stats`). */
  readonly continuousUsage: boolean;
  readonly skipSpecialTokens: boolean;
  /** Log-probability of each token with this many alternatives beside it (0 to 20); null: none are wanted. */
  readonly logprobs: number | null;
}

/** A parsed and checked request. Immutable; owned by the pool thread that parsed it. */
export interface TokenRequest {
  readonly api: Api;
  readonly model: string;
  readonly prompt: Prompt;
  readonly sampling: Sampling;
  readonly stop: Stop;
  readonly output: Output;
  /**
   * Fields that only the engine's own text work can honour (tools, echo, media …). Not empty: the engine makes the
   * text (relayIds or relay mode), whatever tokenizer we hold.
   */
  readonly engineOnly: readonly string[];
  /** Fields of the body that we do not know; passed on to the engine unchanged in every mode. */
  readonly unknown: Readonly<Record<string, unknown>>;
  /** The whole parsed body, as the client wrote it: the base of a relayed body. */
  readonly raw: Readonly<Record<string, unknown>>;
}
