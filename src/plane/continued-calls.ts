/**
 * Going on with an answer at another worker (R3): which requests that is possible for, and what is asked for then. Every
 * choice goes on as a call of its own whose prompt is the prompt and the ids so far, with as much less to generate; the
 * rest of the request stays as it is. Pool thread; pure.
 */
import { WorkerError } from '../errors.js';
import type { AnswerMode, Continuation } from '../messages/records.js';
import type { TokenRequest } from '../messages/token-request.js';

/** Fields whose state in the engine begins anew with a continuation: grammars, and budgets that count from the start. */
const RESTARTING = new Set([
  'structured_outputs',
  'structural_tag',
  'json_schema',
  'regex',
  'ebnf',
  'grammar',
  'logits_processors',
  'thinking_token_budget',
]);
const GUIDED = /^guided_/;
/** Fields of the engine's text work that are over when the prompt has its ids. */
const SHAPES_PROMPT = new Set([
  'reasoning_effort',
  'include_reasoning',
  'chat_template',
  'chat_template_kwargs',
  'add_generation_prompt',
  'continue_final_message',
  'add_special_tokens',
  'documents',
  'truncate_prompt_tokens',
  'truncation_side',
]);
const CALLS_IN_PROMPT = /\.tool_calls$/;

type SamplingState = 'penalties' | 'repetition' | 'draws';

/**
 * State of sampling that an engine begins anew with a continuation, because it counts what it has generated itself and not
 * what it finds in the prompt. penalties: presence and frequency. repetition: its penalty. draws: the random numbers of a
 * seed. vLLM: its repetition penalty looks at the prompt too (model_executor/layers/utils.py), and a seed makes a generator
 * per request (v1/worker/gpu_model_runner.py). SGLang: every penalty is of the output (sampling/penaltylib), and the draw of a
 * seed depends on the place in the sequence alone (layers/sampler.py). TensorRT-LLM: penalties look at the whole sequence
 * (kernels/penaltyKernels.cu).
 */
const BEGINS_ANEW: Readonly<Record<string, readonly SamplingState[]>> = {
  vllm: ['penalties', 'draws'],
  sglang: ['penalties', 'repetition'],
  trtllm: ['draws'],
};
/** Of an engine that an extension brings nothing is known. */
const ALL_BEGINS_ANEW: readonly SamplingState[] = ['penalties', 'repetition', 'draws'];

/** One engine call that goes on with one choice, or begins with all of them. */
export interface ContinuedCall {
  readonly choiceBase: number;
  /** The request with `n`, seed and least tokens of this call. */
  readonly request: TokenRequest;
  /** Prompt and ids so far. */
  readonly ids: Uint32Array;
  readonly maxTokens: number;
}

/**
 * Why an answer to `request` cannot go on elsewhere once it has begun, in words for the client; '': it can. `engines`: those
 * that serve its model, any of which may be asked to go on.
 */
export function cannotMigrate(request: TokenRequest, mode: AnswerMode, engines: readonly string[]): string {
  if (mode === 'relay') return 'the worker tells no token ids';
  const restarting = Object.entries(request.unknown).find(([name, value]) => restarts(name, value));
  if (restarting !== undefined) return `${restarting[0]} cannot be taken up in the middle`;
  const drawn = samplingThatBeginsAnew(request, engines);
  if (drawn !== '') return `${drawn} cannot be taken up in the middle by ${engines.join(' and ')}`;
  if (mode === 'token') return '';
  const field = request.engineOnly.find(name => !SHAPES_PROMPT.has(name) && !CALLS_IN_PROMPT.test(name));
  if (field !== undefined) return `${field} cannot be taken up in the middle`;
  // The engine holds text back that could become a stop string; what it held back is lost with it.
  if (request.stop.strings.length > 0) return 'stop strings that a worker matches cannot be taken up';
  if (request.output.logprobs !== null) return 'logprobs of a worker cannot be taken up in the middle';
  return '';
}

/** The field whose effect on the rest of an answer would be another one at a second worker; '': there is none. */
function samplingThatBeginsAnew({ sampling, unknown }: TokenRequest, engines: readonly string[]): string {
  const restarts = (state: SamplingState): boolean =>
    engines.some(engine => (BEGINS_ANEW[engine] ?? ALL_BEGINS_ANEW).includes(state));
  const { temperature, seed, presencePenalty = 0, frequencyPenalty = 0 } = sampling;
  if (presencePenalty !== 0 && restarts('penalties')) return 'presence_penalty';
  if (frequencyPenalty !== 0 && restarts('penalties')) return 'frequency_penalty';
  if ((unknown.repetition_penalty ?? 1) !== 1 && restarts('repetition')) return 'repetition_penalty';
  // Without a seed every continuation is a fair draw; with one the client expects one certain text.
  const draws = temperature !== 0 && unknown.top_k !== 1;
  return seed !== undefined && draws && restarts('draws') ? 'a seed with a temperature above 0' : '';
}

function restarts(name: string, value: unknown): boolean {
  if (value === null) return false;
  if (name === 'response_format') return (value as { type?: unknown }).type !== 'text';
  return RESTARTING.has(name) || GUIDED.test(name);
}

/**
 * The calls of a continuation. `maxTokens`: of the whole answer, per choice; null: nobody knows. Throws WorkerError
 * MILLRACE_CANNOT_MIGRATE where nothing is left to generate or nobody knows how much is.
 */
export function continuedCalls(
  request: TokenRequest,
  { promptIds, choices }: Continuation,
  maxTokens: number | null,
): ContinuedCall[] {
  if (maxTokens === null) throw impossible('the length of the context is not known');
  const { sampling, stop } = request;
  // Not begun in any choice: as one call, in which the engine itself makes the choices differ.
  if (choices.length === sampling.n && choices.every(({ ids }) => ids.length === 0))
    return [{ choiceBase: 0, request, ids: promptIds, maxTokens }];
  return choices.map(({ choice, ids }) => {
    const left = maxTokens - ids.length;
    if (left < 1) throw impossible('the answer has all its tokens');
    const all = new Uint32Array(promptIds.length + ids.length);
    all.set(promptIds);
    all.set(ids, promptIds.length);
    // As vLLM seeds the choices of one request (its ParentRequest): the seed and the choice's index.
    const seed = sampling.seed === undefined ? {} : { seed: sampling.seed + choice };
    return {
      choiceBase: choice,
      request: {
        ...request,
        sampling: { ...sampling, n: 1, ...seed },
        stop: { ...stop, maxTokens: left, minTokens: Math.max(0, stop.minTokens - ids.length) },
      },
      ids: all,
      maxTokens: left,
    };
  });
}

function impossible(why: string): WorkerError {
  return new WorkerError('MILLRACE_CANNOT_MIGRATE', `the answer cannot go on at another worker: ${why}`);
}
