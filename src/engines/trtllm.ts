/**
 * The adapter for stock TensorRT-LLM (`trtllm-serve`, R5): completions without detokenization in token mode, its OpenAI
 * routes in relay mode. No I/O and no state: `encode` runs on pool threads, the rest on socket threads. It has no abort
 * route: closing the connection ends a request. Wire facts: tensorrt_llm/serve/{openai_server,openai_protocol}.py, metric
 * names of tensorrt_llm/metrics/collector.py, main of mid 2026.
 */
import { strict as assert } from 'node:assert';
import type { TokenRequest } from '../messages/token-request.js';
import type {
  EngineAdapter,
  EngineLoad,
  Fetcher,
  HandoverFacts,
  Poster,
  TokenizeSample,
  WorkerCapabilities,
} from './contract.js';
import { polledEvents } from './event-endpoints.js';
import { isPositive, isRecord, objectOf, readModels, readVersion, versionNotices } from './probe-answers.js';
import { meanOf, sumOf } from './prometheus-text.js';
import { openSseStream, type StreamScanner } from './stream-decoder.js';
import { trtllmControl } from './trtllm-control.js';
import { encodeTrtllmCall, trtllmCanary, trtllmTokenModeGap } from './trtllm-encode.js';
import { readTokenIds } from './vllm-tokenize.js';

/** The name of the engine in configuration, WORLD and metrics. */
export const TRTLLM = 'trtllm';

/** The first release with `token_ids` in the answers of the completions route. */
const SINCE: readonly [number, number, number] = [1, 0, 0];
const METRICS_PATH = '/prometheus/metrics';
const ENDPOINT_CHARS_MAX = 1024;
const EVENTS_PATH = '/kv_cache_events';

/** Parts of the adapter that belong to a thread. */
export interface TrtllmAdapterOptions {
  /** Frame scanner of this thread; `openStream` needs it, a pool thread does not. */
  readonly scanner?: StreamScanner;
}

/** Makes the adapter of one thread. */
export function createTrtllmAdapter(options: TrtllmAdapterOptions = {}): EngineAdapter {
  const { scanner } = options;
  return {
    engine: TRTLLM,
    modelOwner: 'tensorrt_llm',
    hasOpenAiFrames: true,
    healthPath: '/health',
    metricsPath: METRICS_PATH,
    probe: probeTrtllm,
    tokenize: tokenizeTrtllm,
    sampleOf,
    parseMetrics,
    tokenModeGap: trtllmTokenModeGap,
    encode: encodeTrtllmCall,
    control: trtllmControl,
    canary: trtllmCanary,
    abortCall: () => null,
    openStream(limits) {
      assert(scanner !== undefined, 'openStream needs an adapter that was made with a scanner');
      return openSseStream(scanner, limits);
    },
  };
}

async function probeTrtllm(get: Fetcher, origin: string): Promise<WorkerCapabilities> {
  const paths = ['/v1/models', '/version', METRICS_PATH, EVENTS_PATH, '/server_info'];
  const [models, version, metrics, events, info] = await Promise.all(paths.map(get));
  // A GET takes no events away, and is refused where the route is.
  const hasEvents = events!.status === 405;
  const versionText = readVersion(version!);
  const page = metrics!.status === 200 ? metrics!.body : null;
  return {
    engine: TRTLLM,
    version: versionText,
    models: readModels(models!).models,
    ...readCache(page ?? ''),
    returnsTokenIds: true,
    answerModes: ['token', 'relay'],
    // Attention ranks are its own affair: requests cannot name one.
    dpRanks: null,
    events: hasEvents ? polledEvents(origin, EVENTS_PATH) : null,
    handover: readHandover(objectOf(info!)),
    notices: [
      ...versionNotices('TensorRT-LLM', versionText, SINCE),
      ...(page === null
        ? ['it shows no metrics, nor its block size: set return_perf_metrics in its configuration']
        : []),
      ...(hasEvents ? [] : [`it has no ${EVENTS_PATH}: what it holds is guessed from what is routed to it`]),
    ],
  };
}

/** Of a server with a cache transceiver; one endpoint for each of its ranks, of which the first one is asked. */
function readHandover(info: Readonly<Record<string, unknown>> | null): HandoverFacts {
  const params = isRecord(info?.disaggregated_params) ? info.disaggregated_params : {};
  const { ctx_info_endpoint: said } = params;
  const endpoint: unknown = Array.isArray(said) ? said[0] : said;
  const isText = typeof endpoint === 'string' && endpoint !== '' && endpoint.length <= ENDPOINT_CHARS_MAX;
  return { role: null, kvDtype: null, bootstrapPort: null, infoEndpoint: isText ? endpoint : null };
}

function readCache(page: string): Pick<WorkerCapabilities, 'blockSize' | 'totalBlocks'> {
  const blockSize = meanOf(page, 'trtllm_kv_cache_tokens_per_block');
  const totalBlocks = sumOf(page, 'trtllm_kv_cache_max_blocks');
  return {
    blockSize: isPositive(blockSize) ? blockSize : null,
    totalBlocks: isPositive(totalBlocks) ? totalBlocks : null,
  };
}

/** The prefix cache counts blocks here; their share is what matters. */
function parseMetrics(page: string): EngineLoad {
  const reused = sumOf(page, 'trtllm_kv_cache_reused_blocks_total');
  const missed = sumOf(page, 'trtllm_kv_cache_missed_blocks_total');
  return {
    running: sumOf(page, 'trtllm_num_requests_running'),
    waiting: sumOf(page, 'trtllm_num_requests_waiting'),
    kvUsage: meanOf(page, 'trtllm_kv_cache_utilization'),
    prefixCacheQueries: reused === null || missed === null ? null : reused + missed,
    prefixCacheHits: reused,
  };
}

/** `/_internal/tokenize` takes a prompt alone, with nothing else beside the model; older releases have no such route. */
async function tokenizeTrtllm(
  post: Poster,
  model: string,
  sample: TokenizeSample,
): Promise<Uint32Array | null> {
  if (!('prompt' in sample)) return null;
  const { status, body } = await post(
    '/_internal/tokenize',
    JSON.stringify({ model, prompt: sample.prompt }),
  );
  return status === 200 ? readTokenIds('/_internal/tokenize', body) : null;
}

function sampleOf({ prompt, engineOnly }: TokenRequest): TokenizeSample | null {
  const isPlain = !engineOnly.some(
    name => name === 'add_special_tokens' || name === 'truncate_prompt_tokens',
  );
  return prompt.kind === 'text' && isPlain ? { prompt: prompt.text } : null;
}
