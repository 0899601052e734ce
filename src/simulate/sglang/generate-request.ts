/**
 * Body of POST /generate as a mock engine that plays SGLang reads it: prompt as ids or text, sampling under SGLang's names,
 * of which it knows no others (msgspec refuses them). Pure; the result is read-only. Source: GenerateReqInput of
 * sglang/srt/managers/io_struct.py and sglang/srt/sampling/sampling_params.py.
 */
import { LIMITS } from '../../limits.js';
import { type Body, booleanOf, idsOf, integerOf, objectOf, stringOf } from '../openai/body-fields.js';
import {
  type GenerationRequest,
  type ServedModel,
  stopStringsOf,
  stopTokenIdsOf,
  tokensLeft,
} from '../openai/generation-request.js';
import { HttpError } from '../openai/http-error.js';
import { GenerateForm, type GenerateLogprobs } from './generate-form.js';

const SAMPLING_FIELDS = new Set([
  'max_new_tokens',
  'stop',
  'stop_token_ids',
  'stop_regex',
  'temperature',
  'top_p',
  'top_k',
  'min_p',
  'frequency_penalty',
  'presence_penalty',
  'repetition_penalty',
  'min_new_tokens',
  'n',
  'json_schema',
  'regex',
  'ebnf',
  'structural_tag',
  'ignore_eos',
  'skip_special_tokens',
  'spaces_between_special_tokens',
  'no_stop_trim',
  'custom_params',
  'stream_interval',
  'logit_bias',
  'sampling_seed',
]);
const NEW_TOKENS = 128;
const TOKENS_MAX = 2_147_483_647;
const TOP_LOGPROBS_MAX = 20;

/** What the skin adds to a request. */
export interface GenerateContext {
  readonly model: ServedModel;
  /** Frames hold what is new; false: they repeat the whole answer. */
  readonly incremental: boolean;
  /** `logprobs` of tokens by their ids. */
  readonly logprobs: GenerateLogprobs;
  /** Name of a request that has none. */
  readonly newId: () => string;
}

/** Reads a body. Throws HttpError that names the field and what is allowed. */
export function readGenerateRequest(body: Body, context: GenerateContext): GenerationRequest {
  const { model, incremental, newId } = context;
  const params = objectOf(body.sampling_params ?? {}, 'sampling_params');
  const strange = Object.keys(params).find(name => !SAMPLING_FIELDS.has(name));
  // The real server answers 200 and then breaks the stream; said here, so that a test shows what was wrong.
  if (strange !== undefined) throw new HttpError(500, `Unexpected keyword argument '${strange}'`);
  const prompt = promptOf(body, model);
  const asked = integerOf(params, 'max_new_tokens', 1, TOKENS_MAX, NEW_TOKENS);
  const maxTokens = tokensLeft(prompt.length, asked, model.maxModelLen);
  const n = integerOf(params, 'n', 1, LIMITS.choicesMax.max, 1);
  const rid = stringOf(body, 'rid', null);
  const top = integerOf(body, 'top_logprobs_num', 0, TOP_LOGPROBS_MAX, 0);
  const form = new GenerateForm({
    id: rid ?? newId(),
    incremental,
    several: n > 1,
    logprobs: booleanOf(body, 'return_logprob', false) ? ids => context.logprobs(ids, top) : null,
  });
  return {
    api: 'completions',
    prompts: [prompt],
    n,
    maxTokens: [maxTokens],
    minTokens: integerOf(params, 'min_new_tokens', 0, maxTokens, 0),
    ignoreEos: booleanOf(params, 'ignore_eos', false),
    stopStrings: stopStringsOf(params),
    stopTokenIds: stopTokenIdsOf(params, model.tokenizer.vocabularySize),
    includeStopString: booleanOf(params, 'no_stop_trim', false),
    stream: booleanOf(body, 'stream', false),
    includeUsage: false,
    continuousUsage: false,
    returnTokenIds: false,
    idsOnly: false,
    logprobs: null,
    cacheSalt: stringOf(body, 'cache_salt', ''),
    adapter: namedAdapter(body, model),
    native: form,
    abortId: rid,
  };
}

/** The adapter that `lora_path` names; '' for none. Throws HttpError for one that is not loaded. */
export function namedAdapter(body: Body, model: ServedModel): string {
  const name = stringOf(body, 'lora_path', '');
  if (name === '' || model.adapters.has(name)) return name;
  const loaded = [...model.adapters.keys()].map(one => `'${one}'`).join(', ');
  throw new HttpError(
    400,
    `Got LoRA adapter that has never been loaded: ${name}\nAll loaded adapters: dict_keys([${loaded}]).`,
  );
}

function promptOf(body: Body, model: ServedModel): Uint32Array {
  const text = stringOf(body, 'text', null);
  const ids =
    text === null
      ? idsOf(body.input_ids, 'input_ids', model.tokenizer.vocabularySize)
      : model.tokenizer.encode(text);
  if (ids.length === 0) throw new HttpError(400, 'input_ids must not be empty', 'input_ids');
  return ids;
}
