/**
 * Types of the request and response bodies of the HTTP surface, for hosts that build or read them: OpenAI's fields, the
 * ones of vLLM that Millrace knows, and nothing that it would ignore. No code; what is checked is in preprocess/.
 */

/** A part of a message. Parts other than text go to the engine as they are. */
export type ContentPart =
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: string; readonly [field: string]: unknown };

/** One message of a chat. */
export interface ChatMessageBody {
  readonly role: 'system' | 'developer' | 'user' | 'assistant' | 'tool' | (string & {});
  readonly content?: string | readonly ContentPart[] | null;
  readonly name?: string;
  readonly tool_call_id?: string;
  readonly tool_calls?: readonly unknown[];
}

/** Fields that chat and text completions share. */
export interface SharedRequestFields {
  readonly model: string;
  readonly n?: number | null;
  readonly temperature?: number | null;
  readonly top_p?: number | null;
  readonly seed?: number | null;
  readonly presence_penalty?: number | null;
  readonly frequency_penalty?: number | null;
  readonly max_tokens?: number | null;
  readonly stop?: string | readonly string[] | null;
  readonly stream?: boolean | null;
  readonly stream_options?: {
    readonly include_usage?: boolean;
    readonly continuous_usage_stats?: boolean;
  } | null;
  readonly user?: string;
  /** vLLM: no stop before so many tokens. */
  readonly min_tokens?: number;
  /** vLLM: ids that end a choice. */
  readonly stop_token_ids?: readonly number[];
  /** vLLM: do not end at the model's end-of-sequence token. */
  readonly ignore_eos?: boolean;
  /** vLLM: the stop string is part of the answer. */
  readonly include_stop_str_in_output?: boolean;
  /** vLLM: leave special tokens out of the text (default true). */
  readonly skip_special_tokens?: boolean;
  /** Further fields go to the engine as they are. */
  readonly [field: string]: unknown;
}

/** Body of POST /v1/chat/completions. */
export interface ChatCompletionRequest extends SharedRequestFields {
  readonly messages: readonly ChatMessageBody[];
  readonly max_completion_tokens?: number | null;
  readonly tools?: readonly unknown[];
  readonly tool_choice?: unknown;
  readonly response_format?: unknown;
}

/** Body of POST /v1/completions. */
export interface CompletionRequest extends SharedRequestFields {
  readonly prompt: string | readonly number[];
}

/** Token counts of a response. */
export interface UsageBody {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details?: { readonly cached_tokens?: number } | null;
}

/** Why a choice ended; null while it runs. */
export type FinishReasonBody = 'stop' | 'length' | 'tool_calls' | 'content_filter' | (string & {});

/** Answer to a chat completion without `stream`. */
export interface ChatCompletion {
  readonly id: string;
  readonly object: 'chat.completion';
  readonly created: number;
  readonly model: string;
  readonly choices: readonly {
    readonly index: number;
    readonly message: {
      readonly role: 'assistant';
      readonly content: string | null;
      readonly refusal?: string | null;
      readonly tool_calls?: readonly unknown[];
    };
    readonly logprobs?: unknown;
    readonly finish_reason: FinishReasonBody;
    readonly stop_reason?: string | number | null;
  }[];
  readonly usage: UsageBody;
}

/** One `data:` frame of a streamed chat completion; the last one is `[DONE]` instead. */
export interface ChatCompletionChunk {
  readonly id: string;
  readonly object: 'chat.completion.chunk';
  readonly created: number;
  readonly model: string;
  readonly choices: readonly {
    readonly index: number;
    readonly delta: {
      readonly role?: 'assistant';
      readonly content?: string | null;
      readonly tool_calls?: readonly unknown[];
    };
    readonly logprobs?: unknown;
    readonly finish_reason: FinishReasonBody | null;
    readonly stop_reason?: string | number | null;
  }[];
  readonly usage?: UsageBody | null;
}

/** Answer to a text completion without `stream`, and each frame of one with it. */
export interface Completion {
  readonly id: string;
  readonly object: 'text_completion';
  readonly created: number;
  readonly model: string;
  readonly choices: readonly {
    readonly index: number;
    readonly text: string;
    readonly logprobs?: unknown;
    readonly finish_reason: FinishReasonBody | null;
    readonly stop_reason?: string | number | null;
  }[];
  readonly usage?: UsageBody | null;
}

/** Body of GET /v1/models/{id}. */
export interface ModelBody {
  readonly id: string;
  readonly object: 'model';
  readonly created: number;
  readonly owned_by: string;
  /** Tokens of prompt and answer together, where a worker says. */
  readonly max_model_len?: number;
  readonly context_window?: number;
}

/** Body of GET /v1/models. */
export interface ModelListBody {
  readonly object: 'list';
  readonly data: readonly ModelBody[];
}
