/**
 * The ids of a prompt (R3): who makes them, and what they are good for. Ours, or the client's own, can be sent (token
 * mode); where the engine has to do the text work, the client's ids or those of a worker's /tokenize serve to choose a
 * worker by its prefix cache. Pool thread; keeps nothing itself.
 */
import type { EngineAdapter } from '../engines/contract.js';
import { InvalidRequestError } from '../errors.js';
import type { Limits } from '../limits.js';
import type { IdsSource, ModelView, RoutingHints } from '../messages/records.js';
import type { TokenRequest } from '../messages/token-request.js';
import type { PromptIds } from '../preprocess/text-model.js';
import type { PoolFleet, Serving } from './pool-fleet.js';
import type { RemoteIds } from './remote-ids.js';

/** Fields with which the engine computes other ids than those that it is given. */
const SHORTENING = new Set(['truncate_prompt_tokens', 'prompt_embeds']);

/** Ids of a prompt: `mode` token sends them, relay only routes by them. Null: there are none. */
export interface KnownIds {
  readonly mode: 'token' | 'relay';
  readonly ids: Uint32Array | null;
  readonly source: IdsSource;
}

const NO_KNOWN_IDS: KnownIds = { mode: 'relay', ids: null, source: 'unused' };

/** What it needs of its pool thread. */
export interface PromptSourceOptions {
  readonly limits: Pick<Limits, 'tokenizeBytesMax'>;
  readonly fleet: PoolFleet;
  readonly adapters: ReadonlyMap<string, EngineAdapter>;
  /** Ids from workers, for routing where we make none. */
  readonly remoteIds: Pick<RemoteIds, 'idsOf'>;
}

/** See the head of the file. */
export class PromptSource {
  readonly #options: PromptSourceOptions;

  constructor(options: PromptSourceOptions) {
    this.#options = options;
  }

  /**
   * Ids of the prompt, and the mode that follows from who can make them. `routes`: the policy uses them; else only those
   * that are to be sent are made. Throws, at once or by promise, what is wrong with the prompt.
   */
  knownIds(
    request: TokenRequest,
    model: ModelView,
    bodyBytes: number,
    hints: RoutingHints,
    routes: boolean,
  ): KnownIds | Promise<KnownIds> {
    const serving = this.#options.fleet.serving(model, hints.worker);
    const own = this.#promptIds(request, model, serving);
    if (own !== null) {
      let source: IdsSource = request.prompt.kind === 'ids' ? 'client' : 'tokenizer';
      if (!routes) source = 'unused';
      const known = (ids: Uint32Array): KnownIds => ({ mode: 'token', ids, source });
      return own instanceof Promise ? own.then(known) : known(own);
    }
    if (!routes || request.engineOnly.some(name => SHORTENING.has(name))) return NO_KNOWN_IDS;
    if (request.prompt.kind === 'ids') return { mode: 'relay', ids: request.prompt.ids, source: 'client' };
    // A worker is asked only where its answer can change which worker is chosen.
    const isFree = hints.session === '' && serving.workers.length > 1;
    if (!isFree || bodyBytes > this.#options.limits.tokenizeBytesMax) return NO_KNOWN_IDS;
    return this.#idsOfWorker(request, model, serving);
  }

  #idsOfWorker(request: TokenRequest, model: ModelView, { workers }: Serving): KnownIds | Promise<KnownIds> {
    const { adapters, remoteIds } = this.#options;
    const sample = adapters.get(workers[0]!.engine)!.sampleOf(request);
    if (sample === null) return NO_KNOWN_IDS;
    const ids = remoteIds.idsOf(model.name, sample, workers);
    const known = (made: Uint32Array | null): KnownIds => ({
      mode: 'relay',
      ids: made,
      source: made === null ? 'missing' : 'worker',
    });
    return ids instanceof Promise ? ids.then(known) : known(ids);
  }

  /** Ids of the prompt for token mode; null: the request goes in relay mode. */
  #promptIds(request: TokenRequest, model: ModelView, serving: Serving): PromptIds | null {
    const { prompt } = request;
    const { fleet, adapters } = this.#options;
    const textModel = fleet.textModel(model);
    const canToken =
      request.engineOnly.length === 0 &&
      // A chat without max_tokens fills the context; where nobody says how long that is, the engine has to decide.
      (request.api === 'completions' || request.stop.maxTokens !== null || serving.contextLength !== null) &&
      serving.tokenWorkers.length > 0 &&
      serving.tokenEngines.every(engine => adapters.get(engine)!.tokenModeGap(request) === null);
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
}
