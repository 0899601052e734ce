/**
 * HTTP surface of the mock engine: the routes of a stock vLLM server over HttpExchange, with vLLM's bodies, defaults
 * and errors. Reads and checks requests, then hands generation to a GenerationAnswer. One per engine, on its thread.
 */
import type { HttpExchange } from '../../frontend/http/http-exchange.js';
import { LIMITS } from '../../limits.js';
import type { Api } from '../../messages/token-request.js';
import type { Clock } from '../../runtime/clock.js';
import type { AnswerVocabulary } from '../answer-vocabulary.js';
import type { Fault, FaultPlan } from '../faults.js';
import type { LiveEngine } from '../live-engine.js';
import { type Body, booleanOf, idsOf, parseBody, stringOf } from './body-fields.js';
import { EngineMetrics } from './engine-metrics.js';
import { GenerationAnswer } from './generation-answer.js';
import { chatPrompt, checkModel, readGenerationRequest, type ServedModel } from './generation-request.js';
import { TokenLogprobs } from './token-logprobs.js';
import { VllmError } from './vllm-error.js';

const JSON_HEADERS = [['content-type', 'application/json']] as const;
const TEXT_HEADERS = [['content-type', 'text/plain; version=0.0.4; charset=utf-8']] as const;
/** The vLLM release whose surface this is, marked as a mock. */
const VERSION = '0.11.0+millrace.mock';
/** The last one that does not know `return_token_ids`. */
const VERSION_WITHOUT_IDS = '0.10.1+millrace.mock';
const REQUEST_ID_LENGTH_MAX = 128;

/** Generation requests of an engine, by what became of them. */
export interface RequestCounters {
  /** Arrived, whatever became of them. */
  requests: number;
  /** Accepted and not ended yet. */
  running: number;
  finished: number;
  /** Given up by the client. */
  aborted: number;
  /** Never became an answer: the request was wrong, or its body did not arrive. */
  refused: number;
  /** Ended by an injected fault. */
  faulted: number;
}

/** Parts that the surface joins. */
export interface SurfaceOptions {
  readonly engine: LiveEngine;
  readonly vocabulary: AnswerVocabulary;
  readonly model: ServedModel;
  readonly faults: FaultPlan;
  readonly clock: Clock;
  /** False: an older release, which ignores `return_token_ids`. */
  readonly returnsTokenIds: boolean;
  /** A new id for each answer. */
  readonly newId: () => string;
}

/** See the head of the file. */
export class VllmSurface {
  readonly counters: RequestCounters = {
    requests: 0,
    running: 0,
    finished: 0,
    aborted: 0,
    refused: 0,
    faulted: 0,
  };
  readonly #options: SurfaceOptions;
  readonly #metrics = new EngineMetrics();
  readonly #logprobs: TokenLogprobs;
  readonly #startedWallMs: number;
  readonly #gets: Readonly<Record<string, (exchange: HttpExchange) => void>>;
  readonly #posts: Readonly<Record<string, (exchange: HttpExchange) => void>>;

  constructor(options: SurfaceOptions) {
    this.#options = options;
    this.#logprobs = new TokenLogprobs(options.vocabulary, options.model.tokenizer);
    const version = JSON.stringify({ version: options.returnsTokenIds ? VERSION : VERSION_WITHOUT_IDS });
    this.#startedWallMs = options.clock.wallMs();
    this.#gets = {
      '/health': exchange => exchange.respond(200, [], ''),
      '/ping': exchange => exchange.respond(200, [], ''),
      '/version': exchange => exchange.respond(200, JSON_HEADERS, version),
      '/v1/models': exchange => exchange.respond(200, JSON_HEADERS, this.#models()),
      '/metrics': exchange =>
        exchange.respond(200, TEXT_HEADERS, this.#metrics.render(options.engine.core, options.model.name)),
    };
    this.#posts = {
      '/v1/completions': exchange => this.#generate('completions', exchange),
      '/v1/chat/completions': exchange => this.#generate('chat', exchange),
      '/reset_prefix_cache': exchange => this.#resetPrefixCache(exchange),
      '/tokenize': exchange => this.#answer(exchange, body => this.#tokenize(body)),
      '/detokenize': exchange => this.#answer(exchange, body => this.#detokenize(body)),
    };
  }

  /** Serves one request. Never throws. */
  handle(exchange: HttpExchange): void {
    const { path, method } = exchange;
    const get = Object.hasOwn(this.#gets, path) ? this.#gets[path]! : null;
    const post = Object.hasOwn(this.#posts, path) ? this.#posts[path]! : null;
    if (get === null && post === null) respondError(exchange, new VllmError(404, 'Not Found'));
    else if (get !== null && (method === 'GET' || method === 'HEAD')) get(exchange);
    else if (post !== null && method === 'POST') post(exchange);
    else respondError(exchange, new VllmError(405, 'Method Not Allowed'));
  }

  /** Reads a body and answers what `make` returns, or the error that it throws. */
  #answer(exchange: HttpExchange, make: (body: Body) => unknown): void {
    readJson(exchange, body => exchange.respond(200, JSON_HEADERS, JSON.stringify(make(body))));
  }

  #generate(api: Api, exchange: HttpExchange): void {
    const { counters } = this;
    counters.requests++;
    const { faults } = this.#options;
    const fault = faults.draw();
    if (fault?.kind === 'refuse') {
      faults.record('refuse');
      counters.faulted++;
      exchange.abort();
      return;
    }
    readJson(
      exchange,
      body => {
        if (fault?.kind === 'error500') {
          faults.record('error500');
          counters.faulted++;
          respondError(exchange, new VllmError(500, 'injected fault'));
          return;
        }
        this.#start(api, exchange, body, fault);
      },
      () => counters.refused++,
    );
  }

  #start(api: Api, exchange: HttpExchange, body: Body, fault: Fault | null): void {
    const { counters } = this;
    const { engine, vocabulary, model, faults, clock, newId } = this.#options;
    const asked = readGenerationRequest(api, body, model);
    const request = this.#options.returnsTokenIds ? asked : { ...asked, returnTokenIds: false };
    const given = exchange.header('x-request-id')?.slice(0, REQUEST_ID_LENGTH_MAX);
    const id = `${api === 'chat' ? 'chatcmpl' : 'cmpl'}-${given ?? newId()}`;
    counters.running++;
    new GenerationAnswer(exchange, id, request, fault, {
      engine,
      vocabulary,
      logprobs: this.#logprobs,
      metrics: this.#metrics,
      faults,
      clock,
      model: model.name,
      onEnd: how => {
        counters.running--;
        counters[how]++;
      },
    });
  }

  /** vLLM answers 200 also when it keeps the cache because requests hold blocks; the event goes with the next pass. */
  #resetPrefixCache(exchange: HttpExchange): void {
    this.#options.engine.core.pool.reset();
    exchange.respond(200, [], '');
  }

  #models(): string {
    const { name, maxModelLen } = this.#options.model;
    const created = Math.floor(this.#startedWallMs / 1000);
    const model = {
      id: name,
      object: 'model',
      created,
      // What a probe knows a mock by; one that plays an older release is to be judged by it.
      owned_by: this.#options.returnsTokenIds ? 'millrace-mock' : 'vllm',
      root: name,
      parent: null,
      max_model_len: maxModelLen,
    };
    return JSON.stringify({ object: 'list', data: [model] });
  }

  #tokenize(body: Body): unknown {
    const { model } = this.#options;
    checkModel(body, model);
    const text = stringOf(body, 'prompt', null);
    const ids = text === null ? chatPrompt(body, model.tokenizer) : model.tokenizer.encode(text);
    const strings = booleanOf(body, 'return_token_strs', false)
      ? [...ids].map(id => this.#decode([id]))
      : null;
    return { count: ids.length, max_model_len: model.maxModelLen, tokens: [...ids], token_strs: strings };
  }

  #detokenize(body: Body): unknown {
    const { model } = this.#options;
    checkModel(body, model);
    return { prompt: this.#decode(idsOf(body.tokens, 'tokens', model.tokenizer.vocabularySize)) };
  }

  #decode(ids: Iterable<number>): string {
    const { tokenizer } = this.#options.model;
    const parts = Array.from(ids, id => tokenizer.bytesOf(id) ?? new Uint8Array(0));
    return Buffer.concat(parts).toString('utf8');
  }
}

function respondError(exchange: HttpExchange, error: VllmError): void {
  exchange.respond(error.status, JSON_HEADERS, error.body());
}

/** Parses the body and passes it on; answers a VllmError, also one that `use` throws, and tells `onError` first. */
function readJson(exchange: HttpExchange, use: (body: Body) => void, onError?: () => void): void {
  const fail = (error: VllmError): void => {
    onError?.();
    respondError(exchange, error);
  };
  exchange.readBody(
    LIMITS.bodyBytesMax.default,
    LIMITS.bodyDeadlineMs.default,
    chunks => {
      try {
        use(parseBody(chunks));
      } catch (error) {
        // Anything else is a bug of the mock: it fails the request and says so, and the engine lives on.
        fail(error instanceof VllmError ? error : new VllmError(500, String(error)));
      }
    },
    fault => {
      if (fault === 'tooLarge')
        fail(new VllmError(413, `the body is larger than ${LIMITS.bodyBytesMax.default} bytes`));
      else if (fault === 'timeout') fail(new VllmError(408, 'the body did not arrive in time'));
      else onError?.();
    },
  );
}
