/**
 * HTTP surface of a mock engine over HttpExchange: finds the route of the engine that it plays, reads bodies, commits the
 * injected faults and hands generation to a GenerationAnswer. What the routes are and how they answer comes from a skin.
 * One per engine, on its thread.
 */
import type { HttpExchange } from '../../frontend/http/http-exchange.js';
import { LIMITS } from '../../limits.js';
import type { Clock } from '../../runtime/clock.js';
import type { AnswerVocabulary } from '../answer-vocabulary.js';
import type { Fault, FaultPlan } from '../faults.js';
import type { LiveEngine } from '../live-engine.js';
import { type Body, parseBody } from './body-fields.js';
import type { EngineChanges } from './engine-changes.js';
import { EngineMetrics } from './engine-metrics.js';
import { GenerationAnswer } from './generation-answer.js';
import type { GenerationRequest, ServedModel } from './generation-request.js';
import { HttpError } from './http-error.js';
import { TokenLogprobs } from './token-logprobs.js';

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
  /** Ended by an error: the KV of the prompt did not come, or nobody took it. */
  failed: number;
}

/** What a skin makes its answers of. */
export interface SkinContext {
  readonly engine: LiveEngine;
  readonly vocabulary: AnswerVocabulary;
  readonly model: ServedModel;
  readonly metrics: EngineMetrics;
  readonly changes: EngineChanges;
  /** Seconds since the Unix epoch. */
  readonly startedSeconds: number;
}

/** An answer in one piece. A body that is no string is sent as JSON. */
export interface SkinAnswer {
  readonly status?: number;
  readonly type?: string;
  readonly body: unknown;
}

/** The routes of one kind of engine. Each throws HttpError for a wrong request. */
export interface EngineSkin {
  readonly gets: Readonly<Record<string, () => SkinAnswer>>;
  /** An empty body is an empty object to these. */
  readonly posts: Readonly<
    Record<string, (body: Body, surface: EngineSurface, query: URLSearchParams) => SkinAnswer>
  >;
  readonly generations: Readonly<Record<string, (body: Body) => GenerationRequest>>;
  /** Body of an error answer. */
  errorBody(error: HttpError): unknown;
}

/** Parts that the surface joins. */
export interface SurfaceOptions {
  readonly engine: LiveEngine;
  readonly vocabulary: AnswerVocabulary;
  readonly model: ServedModel;
  readonly faults: FaultPlan;
  readonly changes: EngineChanges;
  readonly clock: Clock;
  readonly skin: (context: SkinContext) => EngineSkin;
  /** A new id for each answer. */
  readonly newId: () => string;
}

const JSON_TYPE = 'application/json';

/** See the head of the file. */
export class EngineSurface {
  readonly counters: RequestCounters = {
    requests: 0,
    running: 0,
    finished: 0,
    aborted: 0,
    refused: 0,
    faulted: 0,
    failed: 0,
  };
  readonly #options: SurfaceOptions;
  readonly #metrics = new EngineMetrics();
  readonly #logprobs: TokenLogprobs;
  readonly #skin: EngineSkin;
  readonly #abortable = new Map<string, GenerationAnswer>();

  constructor(options: SurfaceOptions) {
    const { engine, vocabulary, model, clock, changes } = options;
    this.#options = options;
    this.#logprobs = new TokenLogprobs(vocabulary, model.tokenizer);
    const startedSeconds = Math.floor(clock.wallMs() / 1000);
    this.#skin = options.skin({ engine, vocabulary, model, metrics: this.#metrics, changes, startedSeconds });
  }

  /** Serves one request. Never throws. */
  handle(exchange: HttpExchange): void {
    const { path, method } = exchange;
    const get = own(this.#skin.gets, path);
    const post = own(this.#skin.posts, path);
    const generation = own(this.#skin.generations, path);
    if (get === null && post === null && generation === null) {
      // The web framework says this, and not the engine.
      exchange.respond(404, [['content-type', JSON_TYPE]], '{"detail":"Not Found"}');
    } else if (get !== null && (method === 'GET' || method === 'HEAD')) this.#respond(exchange, get);
    else if (generation !== null && method === 'POST') this.#generate(exchange, generation);
    else if (post !== null && method === 'POST') {
      const query = new URLSearchParams(exchange.query);
      this.#readBody(exchange, body => this.#respond(exchange, () => post(body, this, query)));
    } else this.#fail(exchange, new HttpError(405, 'Method Not Allowed'));
  }

  /** Ends the requests that were sent under this name. */
  abort(abortId: string): void {
    this.#abortable.get(abortId)?.abort();
  }

  /** Ends all requests that have a name. */
  abortAll(): void {
    for (const answer of [...this.#abortable.values()]) answer.abort();
  }

  #respond(exchange: HttpExchange, make: () => SkinAnswer): void {
    try {
      const { status = 200, body, type } = make();
      const text = typeof body === 'string' ? body : JSON.stringify(body);
      const shown = type ?? (typeof body === 'string' ? null : JSON_TYPE);
      exchange.respond(status, shown === null ? [] : [['content-type', shown]], text);
    } catch (error) {
      this.#fail(exchange, error);
    }
  }

  /** Answers an error. Anything but a HttpError is a bug of the mock: it fails the request and says so. */
  #fail(exchange: HttpExchange, error: unknown): void {
    const known = error instanceof HttpError ? error : new HttpError(500, String(error));
    const body = JSON.stringify(this.#skin.errorBody(known));
    exchange.respond(known.status, [['content-type', JSON_TYPE]], body);
  }

  #generate(exchange: HttpExchange, read: (body: Body) => GenerationRequest): void {
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
    const refuse = (): number => counters.refused++;
    this.#readBody(
      exchange,
      body => {
        if (fault?.kind === 'error500') {
          faults.record('error500');
          counters.faulted++;
          this.#fail(exchange, new HttpError(500, 'injected fault'));
          return;
        }
        try {
          this.#start(exchange, read(body), fault);
        } catch (error) {
          refuse();
          this.#fail(exchange, error);
        }
      },
      refuse,
    );
  }

  #start(exchange: HttpExchange, request: GenerationRequest, fault: Fault | null): void {
    const { counters } = this;
    const { engine, vocabulary, model, faults, clock, newId, changes } = this.#options;
    if (changes.isAsleep) {
      changes.requestsAsleep++;
      throw new HttpError(500, 'the engine sleeps');
    }
    const given = exchange.header('x-request-id')?.slice(0, REQUEST_ID_LENGTH_MAX);
    const id = `${request.api === 'chat' ? 'chatcmpl' : 'cmpl'}-${given ?? newId()}`;
    const { abortId } = request;
    counters.running++;
    const weighed = { ...request, adapter: changes.textOf(request.adapter) };
    const answer = new GenerationAnswer(exchange, id, weighed, this.#armHandover(request, fault), {
      engine,
      vocabulary,
      logprobs: this.#logprobs,
      metrics: this.#metrics,
      faults,
      clock,
      model: request.adapter === '' ? model.name : request.adapter,
      errorBody: error => this.#skin.errorBody(error),
      onEnd: how => {
        counters.running--;
        counters[how]++;
        if (abortId !== null) this.#abortable.delete(abortId);
      },
    });
    if (abortId !== null) this.#abortable.set(abortId, answer);
  }

  /** Faults of the hand-over strike there, and only requests that have one. Returns what is left for the answer. */
  #armHandover({ handover }: GenerationRequest, fault: Fault | null): Fault | null {
    if (fault?.kind !== 'handoverFailure' && fault?.kind !== 'handoverStall') return fault;
    const { kind } = fault;
    if (handover !== undefined) {
      const onStrike = (): void => this.#options.faults.record(kind);
      handover.fault = { kind: kind === 'handoverFailure' ? 'fail' : 'stall', onStrike };
    }
    return null;
  }

  /** Parses the body and passes it on; answers what is wrong with it, and tells `onError` first. */
  #readBody(exchange: HttpExchange, use: (body: Body) => void, onError?: () => void): void {
    const fail = (error: unknown): void => {
      onError?.();
      this.#fail(exchange, error);
    };
    exchange.readBody(
      LIMITS.bodyBytesMax.default,
      LIMITS.bodyDeadlineMs.default,
      chunks => {
        let body: Body;
        try {
          body = chunks.length === 0 ? {} : parseBody(chunks);
        } catch (error) {
          fail(error);
          return;
        }
        use(body);
      },
      fault => {
        if (fault === 'tooLarge')
          fail(new HttpError(413, `the body is larger than ${LIMITS.bodyBytesMax.default} bytes`));
        else if (fault === 'timeout') fail(new HttpError(408, 'the body did not arrive in time'));
        else onError?.();
      },
    );
  }
}

function own<Value>(record: Readonly<Record<string, Value>>, name: string): Value | null {
  return Object.hasOwn(record, name) ? record[name]! : null;
}
