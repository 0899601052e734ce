/**
 * The adapter for stock vLLM (R5): how to ask a vLLM server what it can do, how to send it a request in token or relay
 * mode, and how to read its answer and its metrics. No I/O and no state: `encode` runs on pool threads, the rest on
 * socket threads. Wire facts: vLLM's vllm/entrypoints/openai/completion/{protocol,serving}.py.
 */
import { strict as assert } from 'node:assert';
import { WorkerError } from '../errors.js';
import type { WorkerModel } from '../messages/records.js';
import type { EngineAdapter, EngineLoad, Fetcher, WorkerCapabilities } from './contract.js';
import { readSamples, type Sample } from './prometheus-text.js';
import { openSseStream, type StreamScanner } from './stream-decoder.js';
import { encodeVllmCall } from './vllm-encode.js';
import { sampleForVllm, tokenizeVllm } from './vllm-tokenize.js';

/** The name of the engine in configuration, WORLD and metrics. */
export const VLLM = 'vllm';

/**
 * First release with `return_token_ids` on /v1/completions and /v1/chat/completions (vLLM pull request 22587, merged
 * after 0.10.1 was cut).
 */
const TOKEN_IDS_SINCE: readonly [number, number, number] = [0, 10, 2];

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
    healthPath: '/health',
    metricsPath: '/metrics',
    probe: probeVllm,
    tokenize: tokenizeVllm,
    sampleOf: sampleForVllm,
    parseMetrics,
    encode: encodeVllmCall,
    openStream(limits) {
      assert(scanner !== undefined, 'openStream needs an adapter that was made with a scanner');
      return openSseStream(scanner, limits);
    },
  };
}

async function probeVllm(get: Fetcher): Promise<WorkerCapabilities> {
  const [models, version, metrics] = await Promise.all([get('/v1/models'), get('/version'), get('/metrics')]);
  const listed = readModels(models);
  const versionText = readVersion(version);
  const cache =
    metrics.status === 200 ? readCacheConfig(metrics.body) : { blockSize: null, totalBlocks: null };
  return {
    engine: VLLM,
    version: versionText,
    models: listed.models,
    ...cache,
    returnsTokenIds: listed.mock || (versionText !== null && isAtLeast(versionText, TOKEN_IDS_SINCE)),
  };
}

function protocolError(message: string): WorkerError {
  return new WorkerError('MILLRACE_WORKER_PROTOCOL', message);
}

function readModels(answer: { status: number; body: string }): {
  models: WorkerCapabilities['models'];
  mock: boolean;
} {
  if (answer.status === 401 || answer.status === 403) {
    throw protocolError(`/v1/models answered ${answer.status}: the worker wants an API key`);
  }
  if (answer.status !== 200) throw protocolError(`/v1/models answered ${answer.status}, expected 200`);
  const data = parseObject(answer.body)?.data;
  if (!Array.isArray(data)) throw protocolError('/v1/models did not answer {"data": [...]}');
  const models: WorkerModel[] = [];
  let mock = false;
  for (const entry of data as readonly unknown[]) {
    const model = entry as Readonly<Record<string, unknown>> | null;
    if (typeof model?.id !== 'string') throw protocolError('/v1/models lists a model without an id');
    const length = model.max_model_len;
    // A LoRA adapter names the model that it sits on; `root` is a path and differs for renamed base models too.
    const adapter = typeof model.parent === 'string' && model.parent !== '' && model.parent !== model.id;
    models.push({
      id: model.id,
      contextLength: isPositive(length) ? length : null,
      ...(adapter ? { adapter } : {}),
    });
    mock ||= model.owned_by === MOCK_OWNER;
  }
  if (models.length === 0) throw protocolError('/v1/models lists no model');
  return { models, mock };
}

/** Null when the server hides its version: some deployments put only the OpenAI routes behind their proxy. */
function readVersion(answer: { status: number; body: string }): string | null {
  const version = answer.status === 200 ? parseObject(answer.body)?.version : null;
  return typeof version === 'string' ? version : null;
}

function isAtLeast(version: string, since: readonly [number, number, number]): boolean {
  const match = /^v?(\d+)\.(\d+)(?:\.(\d+))?/.exec(version);
  if (match === null) return false;
  for (const [index, wanted] of since.entries()) {
    const part = Number(match[index + 1] ?? 0);
    if (part !== wanted) return part > wanted;
  }
  return true;
}

/** The KV cache as `vllm:cache_config_info` shows it: one sample per engine (data parallel rank) of the server. */
function readCacheConfig(page: string): { blockSize: number | null; totalBlocks: number | null } {
  let blockSize: number | null = null;
  let totalBlocks: number | null = null;
  for (const { labels } of readSamples(page, 'vllm:cache_config_info')) {
    // A label is the text of a Python value: 'None' until the cache has been sized.
    const size = Number(labels.get('block_size'));
    const blocks = Number(labels.get('num_gpu_blocks'));
    if (isPositive(size)) blockSize = size;
    if (isPositive(blocks)) totalBlocks = (totalBlocks ?? 0) + blocks;
  }
  return { blockSize, totalBlocks };
}

function parseMetrics(page: string): EngineLoad {
  const sum = (family: string): number | null => total(readSamples(page, family));
  const usage = [
    readSamples(page, 'vllm:kv_cache_usage_perc'),
    // The name before vLLM 0.10.
    readSamples(page, 'vllm:gpu_cache_usage_perc'),
  ].find(samples => samples.length > 0);
  return {
    running: sum('vllm:num_requests_running'),
    waiting: sum('vllm:num_requests_waiting'),
    // A ratio: the mean over the engines of the server, not their sum.
    kvUsage: usage === undefined ? null : total(usage)! / usage.length,
    prefixCacheQueries: sum('vllm:prefix_cache_queries_total'),
    prefixCacheHits: sum('vllm:prefix_cache_hits_total'),
  };
}

function total(samples: readonly Sample[]): number | null {
  if (samples.length === 0) return null;
  return samples.reduce((sum, sample) => sum + sample.value, 0);
}

function isPositive(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) > 0;
}

function parseObject(text: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : null;
  } catch {
    return null;
  }
}
