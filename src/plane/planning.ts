/**
 * Planning (R3, R4): the pure function ASK → PLAN | REJECT of a pool thread. It parses the body, makes token ids where
 * a tokenizer is held, chooses a worker, reserves load on it and builds the bytes to send. First attempts, retries and
 * re-asks after a lost thread are the same call with a higher `attempt`. State: the world and the expected output
 * length per model, both owned by this thread.
 */
import { strict as assert } from 'node:assert';
import type { EncodedCall, EngineAdapter } from '../engines/contract.js';
import type { Limits } from '../limits.js';
import type {
  AnswerMode,
  Ask,
  Continuation,
  Done,
  IdsSource,
  ModelView,
  Plan,
  PlanCall,
  PlanPlacement,
  Reject,
  WorkerView,
  World,
} from '../messages/records.js';
import type { TokenRequest } from '../messages/token-request.js';
import { canStream } from '../preprocess/engine-only.js';
import { resolveMaxTokens } from '../preprocess/max-tokens.js';
import { parseRequest } from '../preprocess/parse-request.js';
import type { TextModel } from '../preprocess/text-model.js';
import type { Decider, Placement, PromptBlocks } from '../router/decide.js';
import type { PairPlacement } from '../router/decide-pair.js';
import type { Hashers } from '../router/hashing/block-hasher.js';
import { cannotMigrate, continuedCalls } from './continued-calls.js';
import {
  answering,
  decideCall,
  refusePeerFields,
  reservationsOf,
  stepsOf,
  toldOf,
} from './disagg-planning.js';
import { notPlaced, rejectOf } from './plan-refusals.js';
import { canAnswer, PoolFleet, type Serving } from './pool-fleet.js';
import { PromptHasher } from './prompt-blocks.js';
import { type KnownIds, PromptSource } from './prompt-source.js';
import type { RemoteIds } from './remote-ids.js';
import { workerName } from './routing-hints.js';

/** Bytes of text that count as one token where no tokenizer is held. */
const BYTES_PER_TOKEN = 4;
/** Weight of the newest request in the expected output length. */
const OUTPUT_WEIGHT = 0.05;
const NO_IDS = new Uint32Array(0);

/** An ASK without what lies in the ring's memory. */
type AskHead = Omit<Ask, 'body'>;

interface Preprocessed {
  readonly mode: AnswerMode;
  /** Empty but in token mode. */
  readonly promptIds: Uint32Array;
  readonly promptTokens: number;
  readonly eosIds: Uint32Array;
  readonly tokenizer: string;
}

/** One engine call before it has a worker. */
interface WantedCall {
  readonly choiceBase: number;
  /** What of the request this call asks for. */
  readonly request: TokenRequest;
  /** Ids that are sent or, in the relay modes, that its worker is chosen by; null: there are none. */
  readonly ids: Uint32Array | null;
  readonly promptTokens: number;
  readonly maxTokens: number | null;
}

/** What planning needs of its pool thread. */
export interface PlanningOptions {
  readonly limits: Limits;
  readonly decider: Decider;
  readonly adapters: ReadonlyMap<string, EngineAdapter>;
  /** Gives back a reservation of a plan that could not be finished. */
  readonly discard: (reservation: number) => void;
  /** Hashers of this thread's requests. */
  readonly hashers: Hashers;
  /** Ids from workers, for routing where we make none. */
  readonly remoteIds: Pick<RemoteIds, 'idsOf' | 'setWorld'>;
}

/** Plans the ASKs of one pool thread. */
export class Planning {
  readonly #options: PlanningOptions;
  readonly #fleet = new PoolFleet();
  readonly #source: PromptSource;
  readonly #outputTokens = new Map<string, number>();
  readonly #hasher: PromptHasher;
  #decisions = 0;

  constructor(options: PlanningOptions) {
    this.#options = options;
    this.#source = new PromptSource({ ...options, fleet: this.#fleet });
    this.#hasher = new PromptHasher(options.hashers);
  }

  /** Replaces what is known of the fleet. `textModels` holds at least those that the models name. */
  setWorld(world: World, textModels: ReadonlyMap<string, TextModel>): void {
    this.#fleet.setWorld(world, textModels);
    this.#options.remoteIds.setWorld(world.workers);
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
    const { limits, decider } = this.#options;
    const request = parseRequest(ask.api, ask.body, limits);
    refusePeerFields(request);
    const model = this.#fleet.model(request.model);
    if (ask.continuation !== null) return this.#continue(ask, request, model, ask.continuation);
    const bodyBytes = ask.body.byteLength;
    const routes = decider.usesBlocks(model.policy);
    const known = this.#source.knownIds(request, model, bodyBytes, ask.hints, routes);
    return known instanceof Promise
      ? known.then(ids => this.#finish(ask, request, model, ids, bodyBytes))
      : this.#finish(ask, request, model, known, bodyBytes);
  }

  /**
   * The rest of a plan, in one go: whatever came in while the ids were made counts. The body is not at hand any more: it
   * was read in the ring's memory.
   */
  #finish(ask: AskHead, request: TokenRequest, model: ModelView, known: KnownIds, bodyBytes: number): Plan {
    const serving = this.#fleet.serving(model, ask.hints.worker);
    const ready = this.#ready(request, model, known, bodyBytes);
    const maxTokens =
      ready.mode === 'token' || request.prompt.kind === 'ids'
        ? resolveMaxTokens(request, ready.promptTokens, serving.contextLength)
        : request.stop.maxTokens;
    const workers = ready.mode === 'token' ? serving.tokenWorkers : serving.workers;
    const { promptTokens } = ready;
    const wanted = { choiceBase: 0, request, ids: known.ids, promptTokens, maxTokens };
    const decided = this.#decide(ask, model, serving, workers, wanted, known.source);
    try {
      const worker = this.#fleet.workerIn(answering(decided).slot);
      const asked = { ...ready, mode: answerMode(ready, request, worker) };
      const { call, planned } = this.#call(ask, model, asked, wanted, ready.promptIds, decided);
      const placement = this.#placement(model, worker, decided, known.source);
      const { usageInjected, idsInjected } = call;
      const head = this.#head(ask, request, model, asked, maxTokens, placement);
      return { ...head, usageInjected, idsInjected, calls: [planned] };
    } catch (error) {
      for (const reservation of reservationsOf(decided)) this.#options.discard(reservation);
      throw error;
    }
  }

  /** Plans the rest of an answer that has begun: a call for each choice, each with a worker of its own. */
  #continue(ask: AskHead, request: TokenRequest, model: ModelView, continuation: Continuation): Plan {
    const { mode, promptIds } = continuation;
    const serving = this.#fleet.serving(model, ask.hints.worker);
    const workers =
      mode === 'token'
        ? serving.tokenWorkers
        : serving.workers.filter(worker => canAnswer(worker, 'relayIds'));
    const maxTokens = resolveMaxTokens(request, promptIds.length, serving.contextLength);
    const source: IdsSource = this.#options.decider.usesBlocks(model.policy) ? 'client' : 'unused';
    // The text model is that of the answer's begin; without token mode the engine has its own.
    const eosIds = mode === 'token' ? this.#eosIds(request, model) : NO_IDS;
    const tokenizer = mode === 'token' ? model.tokenizer! : '';
    const ready = { mode, promptIds, promptTokens: promptIds.length, eosIds, tokenizer };
    const calls: PlanCall[] = [];
    const reserved: number[] = [];
    let placement: PlanPlacement | null = null;
    try {
      for (const one of continuedCalls(request, continuation, maxTokens)) {
        const wanted = { ...one, promptTokens: one.ids.length };
        const decided = this.#decide(ask, model, serving, workers, wanted, source);
        reserved.push(...reservationsOf(decided));
        const worker = this.#fleet.workerIn(answering(decided).slot);
        // Whoever made the text so far: from here on the engine is asked by ids.
        const asked = { ...ready, mode: 'token' as const, promptIds: one.ids };
        calls.push(this.#call(ask, model, asked, wanted, NO_IDS, decided).planned);
        placement ??= this.#placement(model, worker, decided, source);
      }
    } catch (error) {
      for (const reservation of reserved) this.#options.discard(reservation);
      throw error;
    }
    assert(placement !== null, 'a continuation has a choice');
    const head = this.#head(ask, request, model, ready, maxTokens, placement);
    return { ...head, usageInjected: true, idsInjected: true, calls };
  }

  /** Chooses the worker of a call and reserves it. Throws what the client is to see where there is none. */
  #decide(
    ask: AskHead,
    model: ModelView,
    serving: Serving,
    workers: readonly WorkerView[],
    wanted: WantedCall,
    source: IdsSource,
  ): Placement | PairPlacement {
    const { hints, excludedSlots, avoidedSlots, computesLocally } = ask;
    const { request, ids, promptTokens, maxTokens } = wanted;
    const view = {
      model: model.name,
      promptTokens,
      excludedSlots: avoidedSlots.length === 0 ? excludedSlots : [...excludedSlots, ...avoidedSlots],
      session: hints.session === '' ? null : hints.session,
      explains: hints.explains,
      outputTokens: this.#expectedOutput(model.name, request.sampling.n, maxTokens),
      blocks: ids === null || source === 'unused' ? [] : this.#blocks(request, ids, serving),
    };
    let decided = decideCall(this.#options, view, model, workers, request, computesLocally);
    if (decided === 'noWorker' && avoidedSlots.length > 0)
      decided = decideCall(
        this.#options,
        { ...view, excludedSlots },
        model,
        workers,
        request,
        computesLocally,
      );
    if (decided === 'noWorker' || decided === 'full') throw notPlaced(decided, model, hints);
    return decided;
  }

  /** Tokens that the answer will have, all choices together, judged by the answers before it; null: none was seen. */
  #expectedOutput(model: string, choices: number, maxTokens: number | null): number | null {
    const learned = this.#outputTokens.get(model);
    if (learned === undefined) return null;
    return Math.round(Math.min(learned, (maxTokens ?? Number.POSITIVE_INFINITY) * choices));
  }

  #ready(request: TokenRequest, model: ModelView, { mode, ids }: KnownIds, bodyBytes: number): Preprocessed {
    if (mode === 'token') {
      assert(ids !== null && model.tokenizer !== null, 'token mode has ids of our tokenizer');
      const eosIds = this.#eosIds(request, model);
      return { mode, promptIds: ids, promptTokens: ids.length, eosIds, tokenizer: model.tokenizer };
    }
    const { prompt } = request;
    const counted = prompt.kind === 'ids' ? prompt.ids : ids;
    const promptTokens = counted?.length ?? Math.ceil(bodyBytes / BYTES_PER_TOKEN);
    return { mode, promptIds: NO_IDS, promptTokens, eosIds: NO_IDS, tokenizer: '' };
  }

  #eosIds(request: TokenRequest, model: ModelView): Uint32Array {
    return request.stop.ignoreEos ? NO_IDS : this.#fleet.textModel(model)!.eosIds;
  }

  /** The prompt's blocks, where the policy asks for them: hashed once, with all that makes equal ids mean other KV. */
  #blocks(request: TokenRequest, ids: Uint32Array, serving: Serving): readonly PromptBlocks[] {
    const salt = request.raw.cache_salt;
    return this.#hasher.blocksOf(
      ids,
      serving.blockSizes,
      serving.adapter,
      typeof salt === 'string' ? salt : '',
    );
  }

  #call(
    ask: AskHead,
    model: ModelView,
    asked: Preprocessed,
    wanted: WantedCall,
    promptIds: Uint32Array,
    decided: Placement | PairPlacement,
  ): { readonly call: EncodedCall; readonly planned: PlanCall } {
    const { choiceBase, request } = wanted;
    const encode = (worker: WorkerView): EncodedCall => this.#encode(ask, model, asked, wanted, worker);
    const staged = stepsOf(decided, model, slot => this.#fleet.workerIn(slot), encode);
    const { call, protocol, split, steps } = staged;
    const choices = request.sampling.n;
    return { call, planned: { choiceBase, choices, promptIds, protocol, split, steps } };
  }

  #encode(
    ask: AskHead,
    model: ModelView,
    { mode, promptIds, eosIds }: Preprocessed,
    { request, maxTokens, choiceBase }: WantedCall,
    worker: WorkerView,
  ): EncodedCall {
    const engine = this.#options.adapters.get(worker.engine);
    assert(engine !== undefined, `there is an adapter for ${worker.engine}`);
    const adapter = worker.models.find(one => one.id === model.name && one.adapter === true);
    return engine.encode({
      request,
      mode,
      workerModel: model.name,
      promptIds: mode === 'token' ? promptIds : null,
      maxTokens,
      eosIds,
      requestId: engineRequestId(ask, choiceBase),
      rank: worker.rank,
      ...(adapter === undefined ? {} : { adapter }),
    });
  }

  /** A plan without its calls. */
  #head(
    ask: AskHead,
    request: TokenRequest,
    model: ModelView,
    { mode, promptTokens, eosIds, tokenizer }: Preprocessed,
    maxTokens: number | null,
    placement: PlanPlacement,
  ): Omit<Plan, 'usageInjected' | 'idsInjected' | 'calls'> {
    const { stream, includeUsage, continuousUsage, logprobs, skipSpecialTokens } = request.output;
    return {
      request: ask.request,
      attempt: ask.attempt,
      decision: this.#decisions++,
      mode,
      api: request.api,
      stream,
      model: model.name,
      choices: request.sampling.n,
      promptTokens,
      includeUsage,
      continuousUsage,
      logprobs,
      skipSpecialTokens,
      stop: request.stop,
      maxTokens,
      cannotMigrate: cannotMigrate(request, mode, this.#fleet.serving(model, '').engines),
      eosIds,
      tokenizer,
      placement,
    };
  }

  #placement(
    { policy }: ModelView,
    { rank }: WorkerView,
    decided: Placement | PairPlacement,
    ids: IdsSource,
  ): PlanPlacement {
    const told = toldOf(decided, slot => this.#fleet.workerIn(slot));
    const { reason, cachedTokens } = told;
    const candidates =
      told.candidates?.map(({ slot, cost, cachedTokens, queuedTokens, requests }) => ({
        worker: nameOf(this.#fleet.workerIn(slot)),
        cost,
        cachedTokens,
        queuedTokens,
        requests,
      })) ?? null;
    return { policy, reason, rank, ids, cachedTokens, candidates };
  }
}

const nameOf = ({ url, rank }: WorkerView): string => workerName(url, rank);

/** Without token mode the worker decides: one that returns ids is asked for them, unless that needs a stream it cannot give. */
function answerMode(ready: Preprocessed, request: TokenRequest, worker: WorkerView): AnswerMode {
  if (ready.mode === 'token' || !canAnswer(worker, 'relayIds')) return ready.mode;
  return request.output.stream || canStream(request) ? 'relayIds' : 'relay';
}

/** Unique per attempt and call: an engine may refuse an id that it still runs. */
function engineRequestId(ask: AskHead, choiceBase: number): string {
  const given = ask.headers.find(([name]) => name === 'x-request-id')?.[1] ?? 'millrace';
  const choice = ask.continuation === null ? '' : `-${choiceBase}`;
  return `${given}-${ask.request}-${ask.attempt}${choice}`;
}
