/**
 * A whole mock engine in this process: simulated core, real-time driver and the HTTP surface of the engine that it plays,
 * on a loopback port.
 * Used by `millrace mock`, by the examples that `millrace serve` starts, and by tests, which can arm faults and
 * read counters. The caller owns it and must close it; it runs on the caller's thread.
 */
import { webcrypto } from 'node:crypto';
import { ConfigError } from '../errors.js';
import type { HttpServer } from '../frontend/http/http-exchange.js';
import { createHttpServer, type HttpServerKind } from '../frontend/http/server.js';
import { LIMITS } from '../limits.js';
import { loadTokenizer } from '../preprocess/tokenizers/load.js';
import type { Tokenizer } from '../preprocess/tokenizers/tokenizer.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { seededRandom } from '../runtime/random.js';
import { createAnswerVocabulary } from './answer-vocabulary.js';
import type { BlockEvents } from './block-pool.js';
import type { KvConnector } from './disagg/kv-connector.js';
import { KvMemory } from './disagg/kv-memory.js';
import { type ConnectorContext, type DisaggOptions, openConnector } from './disagg/open-connector.js';
import { EngineCore } from './engine-core.js';
import { type EngineSettings, resolveEngineSettings } from './engine-settings.js';
import { FaultPlan, type FaultRates } from './faults.js';
import { LiveEngine, type SequenceOwner } from './live-engine.js';
import { EngineChanges } from './openai/engine-changes.js';
import {
  type EngineSkin,
  EngineSurface,
  type RequestCounters,
  type SkinContext,
} from './openai/engine-surface.js';
import { withRooms } from './sglang/kv-rooms.js';
import { sglangSkin } from './sglang/sglang-skin.js';
import { KvPages } from './tiny/kv-pages.js';
import { TinyModel } from './tiny/tiny-model.js';
import { type CacheEventOptions, CacheEvents } from './trtllm/cache-events.js';
import { withDisaggregatedParams } from './trtllm/disaggregated-params.js';
import { trtllmSkin } from './trtllm/trtllm-skin.js';
import type { KvEventPublisher } from './vllm/kv-event-publisher.js';
import { type KvEventContext, KvEvents, type MockEventOptions } from './vllm/kv-events.js';
import { withKvTransfer } from './vllm/kv-transfer.js';
import { vllmSkin } from './vllm/vllm-skin.js';

/** Name of the model that a mock engine serves unless told otherwise. */
export const MOCK_MODEL = 'mock-model';

/** Tokenizer of the mock's answers. */
const MOCK_TOKENIZER = 'chatml-cl100k';

/** The engines that a mock can play. */
export const MOCK_ENGINES = ['vllm', 'sglang', 'trtllm'] as const;
/** One of MOCK_ENGINES. */
export type MockEngineKind = (typeof MOCK_ENGINES)[number];

/** `event_buffer_max_size` of a mock that plays TensorRT-LLM, whose events are fetched. */
const CACHE_EVENTS_MAX = 1024;
/** Settings of its events; the rest is about ZeroMQ. */
const CACHE_EVENT_KEYS = new Set(['bufferBatches', 'loss', 'port', 'replayPort']);

/** Settings of the simulation and of the server around it; everything has a default. */
export interface MockEngineOptions extends Partial<EngineSettings> {
  /** Default `vllm`. */
  readonly engine?: MockEngineKind;
  /** Default false, as with SGLang, which this is for: frames of /generate repeat the whole answer. */
  readonly incrementalStreams?: boolean;
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
  /**
   * Publishes KV events over ZeroMQ; TensorRT-LLM keeps them for POST /kv_cache_events, `bufferBatches` events at most
   * (default 1024), and loses those of a poll with probability `loss`. Absent: there are none.
   */
  readonly events?: MockEventOptions;
  /** LoRA adapters that it has from the start, as paths by name; more come by its routes. Not for `tiny`. */
  readonly adapters?: Readonly<Record<string, string>>;
  /** A tiny transformer with KV in real pages makes the tokens; default false: they are drawn by a hash. */
  readonly tiny?: boolean;
  /** Memory for the pages of `tiny`, for whoever wants to register it; its own when absent. */
  readonly kvMemory?: ArrayBufferLike;
  /** KV goes to other engines and comes from them; absent: the server runs without a connector. */
  readonly disagg?: DisaggOptions;
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
  /** Its adapters, and what it gave back while it sleeps. */
  readonly changes: EngineChanges;
  /** Its KV events: endpoints, counters, and a restart for tests; null when it publishes none. */
  readonly events: KvEventPublisher | null;
  /** Its KV events that are fetched: of TensorRT-LLM, where they are on. */
  readonly cacheEvents: CacheEvents | null;
  /** Pages of a tiny model; null without one. */
  readonly pages: KvPages | null;
  /** Where the pages are when the transfer engine moves them; null otherwise. */
  readonly memory: KvMemory | null;
  /** Its KV connector: offers, pulls and counters; null without one. */
  readonly connector: KvConnector | null;
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
  const { model = MOCK_MODEL, host = '127.0.0.1', clock = systemClock } = options;
  const tokenizer = options.tokenizer ?? (await loadMockTokenizer());
  const vocabulary = createAnswerVocabulary(tokenizer);
  const faultSeed = options.faultSeed ?? settings.seed;
  const faults = new FaultPlan(options.faults ?? {}, seededRandom(faultSeed));
  const [seedHigh, seedLow] = webcrypto.getRandomValues(new Uint32Array(2));
  const hashSeed = [seedHigh!, seedLow!] as const;
  const { blockSize, numGpuBlocks, maxModelLen } = settings;
  const events = await openEvents(options, {
    host,
    blockSize,
    hashSeed,
    random: seededRandom(faultSeed),
    clock,
  });
  const fetched = openCacheEvents(options, {
    blockSize,
    hashSeed,
    windowSize: maxModelLen,
    blocks: numGpuBlocks,
    random: seededRandom(faultSeed),
  });
  const memory = openMemory(options, settings, host, clock);
  const { pages, core } = coreOf(options, settings, vocabulary, events?.encoder ?? fetched, memory);
  const engine = new LiveEngine(core, { clock, defer: setImmediate, onPass: () => events?.flush() });
  const connector = await openDisagg(options, { host, engine, pages, memory, clock });
  const changes = new EngineChanges(core, options.adapters ?? {});
  let answers = 0;
  let idPrefix = '';
  const newId = (): string => `${idPrefix}-${++answers}`;
  const surface = new EngineSurface({
    engine,
    vocabulary,
    model: { name: model, maxModelLen, tokenizer, adapters: changes.adapters },
    faults,
    changes,
    clock,
    skin: context => {
      const skin = skinOf(options, events, fetched, newId)(context);
      return connector === null ? skin : withConnector(skin, connector, context, options.engine ?? 'vllm');
    },
    newId,
  });
  const { server, port } = await listen(surface, host, options).catch(async error => {
    await Promise.all([events?.publisher.close(), connector?.close()]);
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
    changes,
    events: events?.publisher ?? null,
    cacheEvents: fetched,
    pages,
    memory,
    connector,
    close: async () => {
      engine.close();
      await Promise.all([events?.publisher.close(), connector?.close(), server.close()]);
    },
  };
}

function openMemory(
  { tiny = false, kvMemory, adapters, disagg }: MockEngineOptions,
  { numGpuBlocks: blocks, blockSize, seed }: EngineSettings,
  host: string,
  clock: Clock,
): KvMemory | null {
  if (tiny && adapters !== undefined)
    throw new ConfigError('adapters are not for tiny', { param: 'adapters' });
  if (!tiny && kvMemory !== undefined) throw new ConfigError('kvMemory needs tiny', { param: 'kvMemory' });
  const transfer = disagg?.transfer;
  if (transfer === undefined) return null;
  if (!tiny || kvMemory !== undefined || disagg?.engines !== undefined)
    throw new ConfigError('disagg.transfer needs tiny, and neither kvMemory nor disagg.engines', {
      param: 'disagg.transfer',
    });
  return KvMemory.open({ ...transfer, blocks, blockSize, seed, host, clock });
}

function coreOf(
  { tiny = false, kvMemory }: MockEngineOptions,
  settings: EngineSettings,
  drawable: { readonly ids: Uint32Array; readonly eosId: number },
  events: BlockEvents | null,
  memory: KvMemory | null,
): { readonly pages: KvPages | null; readonly core: EngineCore<SequenceOwner> } {
  const { numGpuBlocks, blockSize, eosRate, seed } = settings;
  if (!tiny) return { pages: null, core: new EngineCore(settings, drawable, events) };
  const pages = memory?.pages ?? new KvPages(numGpuBlocks, blockSize, kvMemory);
  const { ids, eosId } = drawable;
  const model = new TinyModel({ ids, eosId, eosRate, seed }, pages);
  return { pages, core: new EngineCore(settings, drawable, events, model, memory ?? undefined) };
}

/** Closes the memory when it rejects. */
async function openDisagg(
  { disagg, engine: kind = 'vllm' }: MockEngineOptions,
  context: Pick<ConnectorContext, 'host' | 'pages' | 'memory' | 'clock'> & { readonly engine: LiveEngine },
): Promise<KvConnector | null> {
  if (disagg === undefined) return null;
  const { host, pages, memory, clock, engine } = context;
  try {
    checkEngine(disagg, kind);
    return await openConnector(disagg, {
      engineId: webcrypto.randomUUID(),
      host,
      engine: engine.core.settings,
      pool: engine.core.pool,
      pages,
      memory,
      isParallel: kind !== 'vllm' || disagg.connector === 'mooncake',
      clock,
      onRoom: () => engine.wake(),
    });
  } catch (error) {
    await memory?.close();
    throw error;
  }
}

function checkEngine(disagg: DisaggOptions, kind: MockEngineKind): void {
  for (const [param, engine] of [
    ['connector', 'vllm'],
    ['role', 'sglang'],
  ] as const) {
    if (disagg[param] !== undefined && kind !== engine)
      throw new ConfigError(`disagg.${param} is for ${engine}; got ${kind}`, { param: `disagg.${param}` });
  }
}

function withConnector(
  skin: EngineSkin,
  connector: KvConnector,
  context: SkinContext,
  engine: MockEngineKind,
): EngineSkin {
  if (engine === 'vllm') return withKvTransfer(skin, connector);
  if (engine === 'sglang') return withRooms(skin, connector);
  return withDisaggregatedParams(skin, connector, context);
}

async function openEvents(options: MockEngineOptions, context: KvEventContext): Promise<KvEvents | null> {
  const { engine, events } = options;
  if (events === undefined || engine === 'trtllm') return null;
  return KvEvents.open(engine === 'sglang' ? { form: 'sglang', ...events } : events, context);
}

function openCacheEvents(
  { engine, events }: MockEngineOptions,
  context: Omit<CacheEventOptions, 'eventsMax' | 'loss'>,
): CacheEvents | null {
  if (events === undefined || engine !== 'trtllm') return null;
  const { bufferBatches: eventsMax = CACHE_EVENTS_MAX, loss = 0, port = 0, replayPort = 0 } = events;
  const isOwn = Object.keys(events).every(key => CACHE_EVENT_KEYS.has(key)) && port === 0 && replayPort === 0;
  if (!isOwn || !Number.isInteger(eventsMax) || eventsMax < 1 || !(loss >= 0 && loss <= 1)) {
    throw new ConfigError(
      'events of trtllm are fetched with POST /kv_cache_events: allowed are bufferBatches, an integer from 1, and loss, from 0 to 1',
      { param: 'events' },
    );
  }
  return new CacheEvents({ ...context, eventsMax, loss });
}

function skinOf(
  options: MockEngineOptions,
  events: KvEvents | null,
  fetched: CacheEvents | null,
  newId: () => string,
): (context: SkinContext) => EngineSkin {
  const { engine = 'vllm', incrementalStreams = false, returnsTokenIds = true } = options;
  if (engine === 'trtllm') return context => trtllmSkin(context, fetched);
  if (engine === 'vllm') return context => vllmSkin(context, returnsTokenIds);
  const config = events && {
    publisher: 'zmq',
    endpoint: events.publisher.publish,
    replay_endpoint: events.publisher.replay,
    topic: options.events?.topic ?? '',
  };
  const kvEventsConfig = config === null ? null : JSON.stringify(config);
  return context => sglangSkin(context, { incremental: incrementalStreams, kvEventsConfig, newId });
}

async function listen(
  surface: EngineSurface,
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
