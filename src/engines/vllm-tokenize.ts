/**
 * Token ids from a vLLM server's /tokenize route (R3): what to ask it so that it makes the ids of a request, and how to
 * read its answer. Wire facts: vLLM's vllm/entrypoints/serve/tokenize/protocol.py and, for what a chat's template is given,
 * vllm/entrypoints/openai/chat_completion/protocol.py. No I/O and no state; pool threads, and the monitor's thread.
 */
import { WorkerError } from '../errors.js';
import type { TokenRequest } from '../messages/token-request.js';
import type { Poster, TokenizeSample } from './contract.js';

const U32_MAX = 0xffff_ffff;
/** Fields of a completion that its ids depend on and that the route takes. */
const PROMPT_FIELDS = ['add_special_tokens'];
/** The same of a chat. */
const CHAT_FIELDS = [
  'tools',
  'chat_template',
  'chat_template_kwargs',
  'add_generation_prompt',
  'continue_final_message',
  'add_special_tokens',
];
/** Fields of a chat that the route has no place for, and that the chat route gives the template as variables. */
const TEMPLATE_VARIABLES = ['documents', 'reasoning_effort'];
/** With one of these the engine's ids are others than those of the text. */
const OTHER_IDS = new Set(['truncate_prompt_tokens', 'prompt_embeds', 'functions']);

/** `EngineAdapter.sampleOf` for vLLM. */
export function sampleForVllm({ api, prompt, engineOnly, raw }: TokenRequest): TokenizeSample | null {
  if (engineOnly.some(name => OTHER_IDS.has(name))) return null;
  if (prompt.kind === 'text') return { prompt: prompt.text, shaping: fieldsOf(raw, PROMPT_FIELDS) };
  if (prompt.kind === 'ids' || api !== 'chat' || prompt.messages.some(message => message.hasMedia))
    return null;
  const shaping = fieldsOf(raw, CHAT_FIELDS);
  const variables = fieldsOf(raw, TEMPLATE_VARIABLES);
  if (Object.keys(variables).length > 0) {
    shaping.chat_template_kwargs = { ...(shaping.chat_template_kwargs as object | undefined), ...variables };
  }
  return { messages: raw.messages as readonly unknown[], shaping };
}

/**
 * `EngineAdapter.tokenize` for vLLM. Any status but 200 means that there are no ids: no such route, a model without a chat
 * template, or a prompt that the engine refuses.
 */
export async function tokenizeVllm(
  post: Poster,
  model: string,
  sample: TokenizeSample,
): Promise<Uint32Array | null> {
  const { shaping, ...prompt } = sample;
  const { status, body } = await post('/tokenize', JSON.stringify({ ...shaping, model, ...prompt }));
  return status === 200 ? readTokenIds('/tokenize', body) : null;
}

function fieldsOf(raw: TokenRequest['raw'], names: readonly string[]): Record<string, unknown> {
  const given = names.filter(name => Object.hasOwn(raw, name) && raw[name] !== null);
  return Object.fromEntries(given.map(name => [name, raw[name]]));
}

/** The ids in an answer of the route `path`. Throws WorkerError when it holds none. */
export function readTokenIds(path: string, text: string): Uint32Array {
  let tokens: unknown = null;
  try {
    tokens = (JSON.parse(text) as { tokens?: unknown } | null)?.tokens;
  } catch {
    // Said below, as for any other answer that is not what it should be.
  }
  const isId = (id: unknown): boolean =>
    Number.isInteger(id) && (id as number) >= 0 && (id as number) <= U32_MAX;
  if (Array.isArray(tokens) && tokens.every(isId)) return Uint32Array.from(tokens as number[]);
  throw new WorkerError('MILLRACE_WORKER_PROTOCOL', `${path} did not answer {"tokens": [...]}`);
}
