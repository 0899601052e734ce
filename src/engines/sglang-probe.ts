/**
 * What an SGLang server says of itself (R5, health monitor): its models, its settings, its KV cache and its load. Wire
 * facts: `get_server_info` of sglang/srt/entrypoints/http_server.py, which shows the server's arguments and the figures of
 * its scheduler; metric names of sglang/srt/metrics/collector.py. Pure besides the GETs that it is given.
 */
import type { AnswerMode } from '../messages/records.js';
import type { EngineLoad, Fetcher, HandoverFacts, RankEvents, WorkerCapabilities } from './contract.js';
import { rankEndpoint, reachableEndpoint } from './event-endpoints.js';
import { isPositive, isRecord, objectOf, readModels, versionNotices } from './probe-answers.js';
import { meanOf, readSamples, sumOf } from './prometheus-text.js';

/** The name of the engine in configuration, WORLD and metrics. */
export const SGLANG = 'sglang';

/** The first minor whose /generate streams carry `output_ids` in both forms that the decoder knows. */
const SINCE: readonly [number, number, number] = [0, 5, 0];
const PORT_MAX = 65_535;
const EVENTS_ENDPOINT = 'tcp://*:5557';

type Facts = Readonly<Record<string, unknown>>;

/** `EngineAdapter.probe` for SGLang. */
export async function probeSglang(get: Fetcher, origin: string): Promise<WorkerCapabilities> {
  const paths = ['/v1/models', '/get_server_info', '/get_model_info', '/metrics'];
  const [models, oldInfo, model, metrics] = await Promise.all(paths.map(get));
  // The newer name, without a GET for it where the older one still answers.
  const info = objectOf(oldInfo!) ?? objectOf(await get('/server_info')) ?? {};
  const listed = readModels(models!).models;
  const version = typeof info.version === 'string' ? info.version : null;
  const page = metrics!.status === 200 ? metrics!.body : null;
  const generates = objectOf(model!)?.is_generation !== false;
  const ranks = isPositive(info.dp_size) ? info.dp_size : null;
  const cache = readCache(info, page ?? '', ranks ?? 1);
  const events = readEvents(info.kv_events_config, ranks ?? 1, origin);
  return {
    engine: SGLANG,
    version,
    models: listed.map(one => ({ ...one, contextLength: one.contextLength ?? contextOf(info) })),
    ...cache,
    returnsTokenIds: generates,
    answerModes: answerModes(info, generates),
    dpRanks: ranks,
    events,
    handover: readHandover(info),
    notices: [
      ...versionNotices('SGLang', version, SINCE),
      ...settingNotices(info, generates),
      ...(page === null ? ['it shows no metrics: start it with --enable-metrics'] : []),
      ...(cache.blockSize === 1 ? [PAGE_OF_ONE] : []),
    ],
  };
}

const PAGE_OF_ONE =
  'its page size is 1, so that KV routing would index single tokens: start it with --page-size 16, 32 or 64';

/** `EngineAdapter.parseMetrics` for SGLang. One sample per rank: of a tensor-parallel group the first one reports. */
export function parseSglangMetrics(page: string): EngineLoad {
  return {
    running: sumOf(page, 'sglang:num_running_reqs'),
    waiting: sumOf(page, 'sglang:num_queue_reqs'),
    kvUsage: meanOf(page, 'sglang:token_usage'),
    prefixCacheQueries: sumOf(page, 'sglang:prompt_tokens_total'),
    prefixCacheHits: sumOf(page, 'sglang:cached_tokens_total'),
  };
}

function answerModes(info: Facts, generates: boolean): AnswerMode[] {
  if (!generates) return ['relay'];
  // Without a tokenizer it can read ids and nothing else.
  return info.skip_tokenizer_init === true ? ['token'] : ['token', 'relay'];
}

function settingNotices(info: Facts, generates: boolean): string[] {
  const notices: string[] = [];
  if (!generates) notices.push('its model generates no text');
  if (Object.keys(info).length === 0) {
    notices.push('/get_server_info is not there: page size, capacity and KV events are unknown');
    return notices;
  }
  if (info.incremental_streaming_output !== true && info.stream_output !== true) {
    notices.push(
      'its streams repeat the whole answer in every frame: start it with --incremental-streaming-output',
    );
  }
  if (info.schedule_low_priority_values_first === true) {
    notices.push(
      'it serves low priority values first, and Millrace sends high ones for what is urgent: start it without --schedule-low-priority-values-first',
    );
  }
  return notices;
}

/** `--disaggregation-mode` is null, the text, for a server that does both parts. */
function readHandover(info: Facts): HandoverFacts {
  const { disaggregation_mode: mode, disaggregation_bootstrap_port: port, kv_cache_dtype: dtype } = info;
  return {
    role: mode === 'prefill' || mode === 'decode' ? mode : null,
    kvDtype: typeof dtype === 'string' ? dtype : null,
    bootstrapPort: isPositive(port) && port <= PORT_MAX ? port : null,
    infoEndpoint: null,
  };
}

function contextOf(info: Facts): number | null {
  return isPositive(info.context_length) ? info.context_length : null;
}

/** The scheduler's figures are those of one rank. */
function readCache(
  info: Facts,
  page: string,
  ranks: number,
): Pick<WorkerCapabilities, 'blockSize' | 'totalBlocks'> {
  const labels = readSamples(page, 'sglang:cache_config_info')[0]?.labels;
  const size = isPositive(info.page_size) ? info.page_size : Number(labels?.get('page_size'));
  if (!isPositive(size)) return { blockSize: null, totalBlocks: null };
  const tokens = info.max_total_num_tokens;
  const pages = isPositive(tokens) ? Math.floor(tokens / size) : Number(labels?.get('num_pages'));
  return { blockSize: size, totalBlocks: isPositive(pages) ? pages * ranks : null };
}

/** `--kv-events-config`, a JSON text whose publisher is null until somebody sets it. */
function readEvents(config: unknown, ranks: number, origin: string): RankEvents[] | null {
  if (typeof config !== 'string') return null;
  let given: unknown;
  try {
    given = JSON.parse(config);
  } catch {
    return null;
  }
  if (!isRecord(given) || given.publisher !== 'zmq') return null;
  const { endpoint = EVENTS_ENDPOINT, replay_endpoint: replay, topic } = given;
  if (typeof endpoint !== 'string') return null;
  return Array.from({ length: ranks }, (_, rank) => {
    const at = (base: string): string => reachableEndpoint(rankEndpoint(base, rank), origin);
    return {
      publish: at(endpoint),
      replay: typeof replay === 'string' && replay !== '' ? at(replay) : null,
      topic: typeof topic === 'string' ? topic : '',
    };
  });
}
