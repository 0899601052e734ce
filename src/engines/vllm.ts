/**
 * The adapter for stock vLLM (R5): how to ask a vLLM server what it can do, how to send it a request in token or relay
 * mode, and how to read its answer and its metrics. No I/O and no state: `encode` runs on pool threads, the rest on
 * socket threads. Wire facts: vLLM's vllm/entrypoints/openai/completion/{protocol,serving}.py.
 */
import { strict as assert } from 'node:assert';
import type { EngineAdapter, EngineLoad, Fetcher, WorkerCapabilities } from './contract.js';
import { isAtLeast, isPositive, readModels, readVersion, versionNotices } from './probe-answers.js';
import { meanOf, readSamples, sumOf } from './prometheus-text.js';
import { openSseStream, type StreamScanner } from './stream-decoder.js';
import { vllmControl } from './vllm-control.js';
import { encodeVllmCall, vllmCanary } from './vllm-encode.js';
import { readVllmEvents, VLLM_EVENT_SOURCES_PATH } from './vllm-events.js';
import { sampleForVllm, tokenizeVllm } from './vllm-tokenize.js';

/** The name of the engine in configuration, WORLD and metrics. */
export const VLLM = 'vllm';

/**
 * First release with `return_token_ids` on /v1/completions and /v1/chat/completions (vLLM pull request 22587, merged
 * after 0.10.1 was cut).
 */
const TOKEN_IDS_SINCE: readonly [number, number, number] = [0, 10, 2];

/** First release with `GET /kv_event_sources`: 0.32.0 answers it. */
const EVENT_SOURCES_SINCE: readonly [number, number, number] = [0, 32, 0];

/** `owned_by` of the models that Millrace's own mock engine lists; real vLLM says `vllm`. */
const MOCK_OWNER = 'millrace-mock';

/** Parts of the adapter that belong to a thread. */
export interface VllmAdapterOptions {
  /** Frame scanner of this thread; `openStream` needs it, a pool thread does not. */
  readonly scanner?: StreamScanner;
}

/** Makes the adapter of one thread. */
export function createVllmAdapter(options: VllmAdapterOptions = {}): EngineAdapter {
  const { scanner } = options;
  return {
    engine: VLLM,
    modelOwner: 'vllm',
    hasOpenAiFrames: true,
    healthPath: '/health',
    metricsPath: '/metrics',
    probe: probeVllm,
    tokenize: tokenizeVllm,
    sampleOf: sampleForVllm,
    parseMetrics,
    tokenModeGap: () => null,
    encode: encodeVllmCall,
    control: vllmControl,
    canary: vllmCanary,
    // There is such a route in its development mode only.
    abortCall: () => null,
    openStream(limits) {
      assert(scanner !== undefined, 'openStream needs an adapter that was made with a scanner');
      return openSseStream(scanner, limits);
    },
  };
}

async function probeVllm(get: Fetcher, origin: string): Promise<WorkerCapabilities> {
  const [models, version, metrics] = await Promise.all(['/v1/models', '/version', '/metrics'].map(get));
  const { models: listed, owners } = readModels(models!);
  const versionText = readVersion(version!);
  const isMock = owners.has(MOCK_OWNER);
  const tellsEvents = versionText !== null && isAtLeast(versionText, EVENT_SOURCES_SINCE);
  const returnsTokenIds = isMock || (versionText !== null && isAtLeast(versionText, TOKEN_IDS_SINCE));
  return {
    engine: VLLM,
    version: versionText,
    models: listed,
    ...readCacheConfig(metrics!.status === 200 ? metrics!.body : ''),
    returnsTokenIds,
    answerModes: returnsTokenIds ? ['token', 'relayIds', 'relay'] : ['relay'],
    events: tellsEvents ? readVllmEvents(await get(VLLM_EVENT_SOURCES_PATH), origin) : null,
    notices: isMock ? [] : versionNotices('vLLM', versionText, TOKEN_IDS_SINCE),
  };
}

/** The KV cache as `vllm:cache_config_info` shows it: one sample per engine (data parallel rank) of the server. */
function readCacheConfig(
  page: string,
): Pick<WorkerCapabilities, 'blockSize' | 'totalBlocks' | 'dpRanks' | 'handover'> {
  let blockSize: number | null = null;
  let totalBlocks: number | null = null;
  const samples = readSamples(page, 'vllm:cache_config_info');
  for (const { labels } of samples) {
    // A label is the text of a Python value: 'None' until the cache has been sized.
    const size = Number(labels.get('block_size'));
    const blocks = Number(labels.get('num_gpu_blocks'));
    if (isPositive(size)) blockSize = size;
    if (isPositive(blocks)) totalBlocks = (totalBlocks ?? 0) + blocks;
  }
  const engines = new Set(samples.map(({ labels }) => labels.get('engine')));
  const kvDtype = samples[0]?.labels.get('cache_dtype') ?? null;
  return {
    blockSize,
    totalBlocks,
    dpRanks: engines.size > 0 ? engines.size : null,
    handover: { role: null, kvDtype, bootstrapPort: null, infoEndpoint: null },
  };
}

function parseMetrics(page: string): EngineLoad {
  return {
    running: sumOf(page, 'vllm:num_requests_running'),
    waiting: sumOf(page, 'vllm:num_requests_waiting'),
    // The second is the name before vLLM 0.10.
    kvUsage: meanOf(page, 'vllm:kv_cache_usage_perc') ?? meanOf(page, 'vllm:gpu_cache_usage_perc'),
    prefixCacheQueries: sumOf(page, 'vllm:prefix_cache_queries_total'),
    prefixCacheHits: sumOf(page, 'vllm:prefix_cache_hits_total'),
  };
}
