/**
 * A whole mock engine in this process: simulated core, real-time driver and vLLM's HTTP surface on a loopback port.
 * Used by `millrace mock`, by the examples that `millrace serve` starts, and by tests, which can arm faults and
 * read counters. The caller owns it and must close it; it runs on the caller's thread.
 */
import { webcrypto } from 'node:crypto';
import type { HttpServer } from '../frontend/http/http-exchange.js';
import { createHttpServer, type HttpServerKind } from '../frontend/http/server.js';
import { LIMITS } from '../limits.js';
import { loadTokenizer } from '../preprocess/tokenizers/load.js';
import type { Tokenizer } from '../preprocess/tokenizers/tokenizer.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { seededRandom } from '../runtime/random.js';
import { createAnswerVocabulary } from './answer-vocabulary.js';
import { EngineCore } from './engine-core.js';
import { type EngineSettings, resolveEngineSettings } from './engine-settings.js';
import { FaultPlan, type FaultRates } from './faults.js';
import { LiveEngine, type SequenceOwner } from './live-engine.js';
import type { KvEventPublisher } from './vllm/kv-event-publisher.js';
import { KvEvents, type MockEventOptions } from './vllm/kv-events.js';
import { type RequestCounters, VllmSurface } from './vllm/vllm-surface.js';

/** Name of the model that a mock engine serves unless told otherwise. */
export const MOCK_MODEL = 'mock-model';

/** Tokenizer of the mock's answers. */
const MOCK_TOKENIZER = 'chatml-cl100k';

/** Settings of the simulation and of the server around it; everything has a default. */
export interface MockEngineOptions extends Partial<EngineSettings> {
  readonly model?: string;
  /** Default 127.0.0.1. */
  readonly host?: string;
  /** 0, the default, lets the system choose. */
  readonly port?: number;
  readonly faults?: FaultRates;
  /** Default true; false: the mock plays a vLLM release that cannot return token ids. */
  readonly returnsTokenIds?: boolean;
  /** Seeds the draw of faults; default: `seed`. Engines of one fleet must not all fail at the same request. */
  readonly faultSeed?: number;
  /** Publishes KV events over ZeroMQ; absent: it does not. */
  readonly events?: MockEventOptions;
  /** Shared by several engines of a process; loaded when absent. */
  readonly tokenizer?: Tokenizer;
  readonly serverKind?: HttpServerKind;
  readonly clock?: Clock;
}

/** A running mock engine. */
export interface MockEngine {
  /** Without a path or a slash at the end. */
  readonly url: string;
  readonly port: number;
  readonly model: string;
  /** The simulated engine: pool, queues and totals. */
  readonly core: EngineCore<SequenceOwner>;
  /** Arms faults (`next`) and counts those that took place (`fired`). */
  readonly faults: FaultPlan;
  readonly counters: Readonly<RequestCounters>;
  /** Its KV events: endpoints, counters, and a restart for tests; null when it publishes none. */
  readonly events: KvEventPublisher | null;
  /** Closes every connection and stops the simulation. */
  close(): Promise<void>;
}

/** The tokenizer of mock engines, to be shared by those of one process. */
export function loadMockTokenizer(): Promise<Tokenizer> {
  return loadTokenizer(MOCK_TOKENIZER);
}

/** Starts a mock engine. Rejects with a ConfigError for a wrong setting, or with the reason why it cannot listen. */
export async function startMockEngine(options: MockEngineOptions = {}): Promise<MockEngine> {
  const settings = resolveEngineSettings(options);
  const model = options.model ?? MOCK_MODEL;
  const host = options.host ?? '127.0.0.1';
  const clock = options.clock ?? systemClock;
  const tokenizer = options.tokenizer ?? (await loadMockTokenizer());
  const vocabulary = createAnswerVocabulary(tokenizer);
  const faultSeed = options.faultSeed ?? settings.seed;
  const faults = new FaultPlan(options.faults ?? {}, seededRandom(faultSeed));
  const [seedHigh, seedLow] = webcrypto.getRandomValues(new Uint32Array(2));
  const events =
    options.events === undefined
      ? null
      : await KvEvents.open(options.events, {
          host,
          blockSize: settings.blockSize,
          hashSeed: [seedHigh!, seedLow!],
          random: seededRandom(faultSeed),
          clock,
        });
  const core = new EngineCore<SequenceOwner>(settings, vocabulary, events?.encoder);
  const engine = new LiveEngine(core, { clock, defer: setImmediate, onPass: () => events?.flush() });
  let answers = 0;
  let idPrefix = '';
  const surface = new VllmSurface({
    engine,
    vocabulary,
    model: { name: model, maxModelLen: settings.maxModelLen, tokenizer },
    faults,
    clock,
    returnsTokenIds: options.returnsTokenIds ?? true,
    newId: () => `${idPrefix}-${++answers}`,
  });
  const { server, port } = await listen(surface, host, options).catch(async error => {
    await events?.publisher.close();
    throw error;
  });
  idPrefix = `${clock.wallMs().toString(36)}-${port}`;
  return {
    url: `http://${host.includes(':') ? `[${host}]` : host}:${port}`,
    port,
    model,
    core,
    faults,
    counters: surface.counters,
    events: events?.publisher ?? null,
    close: async () => {
      engine.close();
      await Promise.all([events?.publisher.close(), server.close()]);
    },
  };
}

async function listen(
  surface: VllmSurface,
  host: string,
  options: MockEngineOptions,
): Promise<{ server: HttpServer; port: number }> {
  const server = await createHttpServer(options.serverKind ?? 'auto', {
    headerBytesMax: LIMITS.headerBytesMax.default,
    headerDeadlineMs: LIMITS.headerDeadlineMs.default,
    onExchange: exchange => surface.handle(exchange),
  });
  const { port } = await server.listen(host, options.port ?? 0);
  return { server, port };
}
