/**
 * The fields that `trtllm-serve` knows, all others being refused: `CompletionRequest`, `ChatCompletionRequest` and what they
 * hold, of tensorrt_llm/serve/openai_protocol.py (main of mid 2026). Written down apart from the adapter's own list, so
 * that a mock engine can tell when the adapter sends something else.
 */

const COMMON = [
  'model',
  'frequency_penalty',
  'logit_bias',
  'logprobs',
  'max_tokens',
  'n',
  'presence_penalty',
  'seed',
  'stop',
  'stream',
  'stream_options',
  'temperature',
  'top_p',
  'user',
  'lora_request',
  'prompt_ignore_length',
  'best_of',
  'use_beam_search',
  'top_k',
  'top_p_min',
  'min_p',
  'repetition_penalty',
  'length_penalty',
  'early_stopping',
  'stop_token_ids',
  'include_stop_str_in_output',
  'ignore_eos',
  'min_tokens',
  'skip_special_tokens',
  'spaces_between_special_tokens',
  'truncate_prompt_tokens',
  'thinking_token_budget',
  'add_special_tokens',
  'response_format',
  'echo',
  'disaggregated_params',
  'conversation_params',
  'priority',
];

/** Of POST /v1/completions. */
export const COMPLETION_FIELDS: ReadonlySet<string> = new Set([
  ...COMMON,
  'prompt',
  'suffix',
  'return_context_logits',
  'detokenize',
]);

/** Of POST /v1/chat/completions. */
export const CHAT_FIELDS: ReadonlySet<string> = new Set([
  ...COMMON,
  'messages',
  'prompt_token_ids',
  'prompt_token_ids_b64',
  'top_logprobs',
  'max_completion_tokens',
  'tools',
  'tool_choice',
  'parallel_tool_calls',
  'reasoning_effort',
  'thinking',
  'add_generation_prompt',
  'documents',
  'chat_template',
  'chat_template_kwargs',
  'injected_chat_template_kwargs',
  'media_io_kwargs',
  'cache_salt',
  'agent_hierarchy',
  'mm_processor_kwargs',
]);

/** Of the objects in them. */
export const NESTED_FIELDS: Readonly<Record<string, ReadonlySet<string>>> = {
  stream_options: new Set(['include_usage', 'continuous_usage_stats']),
  response_format: new Set(['type', 'schema', 'json_schema', 'regex', 'ebnf', 'format']),
};
