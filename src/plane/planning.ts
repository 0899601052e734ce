/**
 * Planning (R3, R4): the pure function ASK → PLAN | REJECT of a pool thread. It parses the body, makes token ids where
 * a tokenizer is held, chooses a worker, reserves load on it and builds the bytes to send. First attempts, retries and
 * re-asks after a lost thread are the same call with a higher `attempt`. State: the world and the expected output
 * length per model, both owned by this thread.
 */
import { strict as assert } from 'node:assert';
import type { EngineAdapter } from '../engines/contract.js';
import { InvalidRequestError, MillraceError, RejectedError } from '../errors.js';
import type { Limits } from '../limits.js';
import type {
  AnswerMode,
  Ask,
  Done,
  ModelView,
  Plan,
  Reject,
  WorkerView,
  World,
} from '../messages/records.js';
import type { TokenRequest } from '../messages/token-request.js';
import { canStream } from '../preprocess/engine-only.js';
import { resolveMaxTokens } from '../preprocess/max-tokens.js';
import { parseRequest } from '../preprocess/parse-request.js';
import type { PromptIds, TextModel } from '../preprocess/text-model.js';
import type { Decider } from '../router/decide.js';

/** Bytes of text that count as one token where no tokenizer is held. */
const BYTES_PER_TOKEN = 4;
/** Weight of the newest request in the expected output length. */
const OUTPUT_WEIGHT = 0.05;
const NO_IDS = new Uint32Array(0);

interface Preprocessed {
  readonly mode: 'token' | 'relay';
  readonly promptIds: Uint32Array;
  readonly promptTokens: number;
  readonly eosIds: Uint32Array;
  readonly tokenizer: string;
}

/** What planning needs of its pool thread. */
export interface PlanningOptions {
  readonly limits: Limits;
  readonly decider: Decider;
  readonly adapters: ReadonlyMap<string, EngineAdapter>;
  /** Gives back a reservation of a plan that could not be finished. */
  readonly discard: (reservation: number) => void;
}

/** Plans the ASKs of one pool thread. */
export class Planning {
  readonly #options: PlanningOptions;
  readonly #textModels = new Map<string, TextModel>();
  readonly #models = new Map<string, ModelView>();
  readonly #outputTokens = new Map<string, number>();
  #workers: readonly WorkerView[] = [];
  #decisions = 0;

  constructor(options: PlanningOptions) {
    this.#options = options;
  }

  /** Replaces what is known of the fleet. `textModels` holds at least those that the models name. */
  setWorld(world: World, textModels: ReadonlyMap<string, TextModel>): void {
    this.#workers = world.workers;
    this.#models.clear();
    for (const model of world.models) this.#models.set(model.name, model);
    for (const [key, textModel] of textModels) this.#textModels.set(key, textModel);
  }

  /** Learns from an ended request how long answers of its model are. */
  learn(done: Done): void {
    if (done.cause !== 'completed') return;
    const known = this.#outputTokens.get(done.model) ?? done.completionTokens;
    this.#outputTokens.set(done.model, known + OUTPUT_WEIGHT * (done.completionTokens - known));
  }

  /**
   * Answers an ASK: at once, or by promise where the model's tokenizer works on another thread. Never throws or rejects
   * for a bad request: that is a REJECT.
   */
  plan(ask: Ask): Plan | Reject | Promise<Plan | Reject> {
    try {
      const plan = this.#plan(ask);
      return plan instanceof Promise ? plan.catch(error => rejectOf(ask, error)) : plan;
    } catch (error) {
      return rejectOf(ask, error);
    }
  }

  #plan(ask: Ask): Plan | Promise<Plan> {
    const request = parseRequest(ask.api, ask.body, this.#options.limits);
    const model = this.#model(request.model);
    const bodyBytes = ask.body.byteLength;
    const promptIds = this.#promptIds(request, model);
    return promptIds instanceof Promise
      ? promptIds.then(ids => this.#finish(ask, request, model, ids, bodyBytes))
      : this.#finish(ask, request, model, promptIds, bodyBytes);
  }

  /**
   * The rest of a plan, in one go: whatever came in while the ids were made counts. Null ids: relay mode. The body is
   * not at hand any more: it was read in the ring's memory.
   */
  #finish(
    ask: Omit<Ask, 'body'>,
    request: TokenRequest,
    model: ModelView,
    promptIds: Uint32Array | null,
    bodyBytes: number,
  ): Plan {
    const serving = this.#serving(model);
    const contextLength = this.#contextLength(model, serving);
    const ready = this.#ready(request, model, promptIds, bodyBytes);
    const maxTokens =
      ready.mode === 'token' || request.prompt.kind === 'ids'
        ? resolveMaxTokens(request, ready.promptTokens, contextLength)
        : request.stop.maxTokens;
    const decided = this.#options.decider.decide(
      {
        model: model.name,
        promptTokens: ready.promptTokens,
        excludedSlots: ask.excludedSlots,
        outputTokens: this.#expectedOutput(model.name, request.sampling.n, maxTokens),
      },
      model.policy,
      ready.mode === 'token' ? serving.filter(worker => servesTokens(worker, model)) : serving,
    );
    if (decided === 'noWorker') {
      throw new RejectedError('MILLRACE_NO_WORKER', `no worker is ready for model "${model.name}"`, {
        retryAfterMs: 1000,
      });
    }
    if (decided === 'full') {
      throw new RejectedError('MILLRACE_OVERLOADED', 'all reservations are taken', { retryAfterMs: 1000 });
    }
    try {
      return this.#build(ask, request, model, ready, maxTokens, decided);
    } catch (error) {
      this.#options.discard(decided.reservation);
      throw error;
    }
  }

  /** Tokens that the answer will have, all choices together, judged by the answers before it; null: none was seen. */
  #expectedOutput(model: string, choices: number, maxTokens: number | null): number | null {
    const learned = this.#outputTokens.get(model);
    if (learned === undefined) return null;
    return Math.round(Math.min(learned, (maxTokens ?? Number.POSITIVE_INFINITY) * choices));
  }

  #model(name: string): ModelView {
    const model = this.#models.get(name);
    if (model !== undefined) return model;
    if (this.#models.size === 0) {
      throw new RejectedError('MILLRACE_NO_WORKER', 'no worker is ready', { retryAfterMs: 1000 });
    }
    const shown = name.length > 100 ? `${name.slice(0, 100)}…` : name;
    throw new InvalidRequestError(
      'MILLRACE_UNKNOWN_MODEL',
      `the model "${shown}" does not exist; GET /v1/models lists those that do`,
      { param: 'model' },
    );
  }

  #serving(model: ModelView): WorkerView[] {
    return this.#workers.filter(worker => worker.models.some(entry => entry.id === model.name));
  }

  /** Prompt and answer together, in tokens: what is set, else what the workers say, else what the model's files say. */
  #contextLength(model: ModelView, serving: readonly WorkerView[]): number | null {
    return (
      model.contextLength ??
      narrowestContext(serving, model.name) ??
      this.#textModel(model)?.contextLength ??
      null
    );
  }

  #textModel(model: ModelView): TextModel | null {
    if (model.tokenizer === null) return null;
    const textModel = this.#textModels.get(model.tokenizer);
    assert(textModel !== undefined, `the text model ${model.tokenizer} is loaded with its world`);
    return textModel;
  }

  /** Ids of the prompt for token mode; null: the request goes in relay mode. */
  #promptIds(request: TokenRequest, model: ModelView): PromptIds | null {
    const { prompt } = request;
    const textModel = this.#textModel(model);
    const serving = this.#serving(model);
    const canToken =
      request.engineOnly.length === 0 &&
      // A chat without max_tokens fills the context; where nobody says how long that is, the engine has to decide.
      (request.api === 'completions' ||
        request.stop.maxTokens !== null ||
        this.#contextLength(model, serving) !== null) &&
      serving.some(worker => servesTokens(worker, model));
    if (textModel === null || !canToken) return null;
    if (prompt.kind === 'text') return textModel.encodePrompt(prompt.text);
    if (prompt.kind === 'messages') {
      return textModel.rendersChat ? textModel.encodeChat(prompt.messages) : null;
    }
    const outOfRange = prompt.ids.find(id => id >= textModel.vocabularySize);
    if (outOfRange === undefined) return prompt.ids;
    throw new InvalidRequestError(
      'MILLRACE_INVALID_REQUEST',
      `prompt holds the token id ${outOfRange}; allowed: 0 to ${textModel.vocabularySize - 1}`,
      { param: 'prompt' },
    );
  }

  #ready(
    request: TokenRequest,
    model: ModelView,
    promptIds: Uint32Array | null,
    bodyBytes: number,
  ): Preprocessed {
    if (promptIds === null || model.tokenizer === null) {
      const { prompt } = request;
      const estimate = prompt.kind === 'ids' ? prompt.ids.length : Math.ceil(bodyBytes / BYTES_PER_TOKEN);
      return { mode: 'relay', promptIds: NO_IDS, promptTokens: estimate, eosIds: NO_IDS, tokenizer: '' };
    }
    return {
      mode: 'token',
      promptIds,
      promptTokens: promptIds.length,
      eosIds: request.stop.ignoreEos ? NO_IDS : this.#textModel(model)!.eosIds,
      tokenizer: model.tokenizer,
    };
  }

  #build(
    ask: Omit<Ask, 'body'>,
    request: TokenRequest,
    model: ModelView,
    ready: Preprocessed,
    maxTokens: number | null,
    decided: { slot: number; generation: number; reservation: number },
  ): Plan {
    const worker = this.#workers.find(entry => entry.slot === decided.slot);
    assert(worker !== undefined, 'the decider chooses among the workers of this world');
    const adapter = this.#options.adapters.get(worker.engine);
    assert(adapter !== undefined, `there is an adapter for ${worker.engine}`);
    const mode = answerMode(ready, request, worker);
    const call = adapter.encode({
      request,
      mode,
      workerModel: model.name,
      promptIds: mode === 'token' ? ready.promptIds : null,
      maxTokens,
      eosIds: ready.eosIds,
      requestId: engineRequestId(ask),
      rank: worker.rank,
    });
    return {
      request: ask.request,
      attempt: ask.attempt,
      decision: this.#decisions++,
      mode,
      api: request.api,
      stream: request.output.stream,
      model: model.name,
      choices: request.sampling.n,
      promptTokens: ready.promptTokens,
      includeUsage: request.output.includeUsage,
      continuousUsage: request.output.continuousUsage,
      usageInjected: call.usageInjected,
      idsInjected: call.idsInjected,
      logprobs: request.output.logprobs,
      skipSpecialTokens: request.output.skipSpecialTokens,
      stop: request.stop,
      eosIds: ready.eosIds,
      tokenizer: ready.tokenizer,
      calls: [
        {
          choiceBase: 0,
          promptIds: ready.promptIds,
          steps: [
            {
              stage: 'generate',
              after: null,
              answer: 'stream',
              slot: decided.slot,
              generation: decided.generation,
              reservation: decided.reservation,
              method: call.method,
              path: call.path,
              head: call.head,
              body: call.body,
            },
          ],
        },
      ],
    };
  }
}

/** Without token mode the worker decides: one that returns ids is asked for them, unless that needs a stream it cannot give. */
function answerMode(ready: Preprocessed, request: TokenRequest, worker: WorkerView): AnswerMode {
  if (ready.mode === 'token' || !worker.returnsTokenIds) return ready.mode;
  return request.output.stream || canStream(request) ? 'relayIds' : 'relay';
}

/** True where this worker takes our ids of the model and answers in ids. */
function servesTokens(worker: WorkerView, model: ModelView): boolean {
  return worker.returnsTokenIds && !worker.foreignIds.includes(model.name);
}

function rejectOf(ask: Omit<Ask, 'body'>, error: unknown): Reject {
  const known = error instanceof MillraceError;
  return {
    request: ask.request,
    attempt: ask.attempt,
    code: known ? error.code : 'MILLRACE_INTERNAL',
    message: known ? error.message : 'internal error while planning the request',
    param: known ? error.param : null,
    retryAfterMs: known ? (error.retryAfterMs ?? 0) : 0,
  };
}

function narrowestContext(workers: readonly WorkerView[], model: string): number | null {
  let narrowest: number | null = null;
  for (const worker of workers) {
    const length = worker.models.find(entry => entry.id === model)?.contextLength ?? null;
    if (length !== null && (narrowest === null || length < narrowest)) narrowest = length;
  }
  return narrowest;
}

/** Unique per attempt: an engine may refuse an id that it still runs. */
function engineRequestId(ask: Omit<Ask, 'body'>): string {
  const given = ask.headers.find(([name]) => name === 'x-request-id')?.[1] ?? 'millrace';
  return `${given}-${ask.request}-${ask.attempt}`;
}
