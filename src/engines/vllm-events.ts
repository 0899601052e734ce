/**
 * Where a vLLM server publishes its KV events (R5, probe): its answer to GET /kv_event_sources, which exists since 0.32.
 * Two forms are known: a map by data-parallel rank (0.32.0) and a list of entries that name their rank (later trees, as
 * vllm/entrypoints/serve/kv_events/api_router.py tests it). Pure; runs on the registry's thread.
 */
import type { RankEvents } from './contract.js';
import { rankEndpoint, reachableEndpoint } from './event-endpoints.js';
import { isRecord, type ProbeAnswer } from './probe-answers.js';

/** Path of the route. */
export const VLLM_EVENT_SOURCES_PATH = '/kv_event_sources';

interface Source {
  readonly rank: number;
  readonly publish: string;
  readonly replay: string | null;
  readonly topic: string;
}

/** The endpoints by rank; null when the server has no such route, publishes nothing, or leaves a rank out. */
export function readVllmEvents(answer: ProbeAnswer, origin: string): RankEvents[] | null {
  if (answer.status !== 200) return null;
  let value: unknown;
  try {
    value = JSON.parse(answer.body);
  } catch {
    return null;
  }
  const entries: [unknown, unknown][] = Array.isArray(value)
    ? value.map(entry => [isRecord(entry) ? entry.data_parallel_rank : null, entry])
    : Object.entries(isRecord(value) ? value : {}).map(([rank, entry]) => [Number(rank), entry]);
  const sources = entries.map(([rank, entry]) => readSource(rank, entry));
  if (sources.length === 0 || sources.some(source => source === null)) return null;
  const sorted = (sources as Source[]).sort((one, other) => one.rank - other.rank);
  if (sorted.some((source, at) => source.rank !== at)) return null;
  // One endpoint for all ranks is the configured one, from which each rank counts its own up.
  const isBase = sorted.length > 1 && sorted.every(source => source.publish === sorted[0]!.publish);
  return sorted.map(({ rank, publish, replay, topic }) => {
    const at = (endpoint: string): string =>
      reachableEndpoint(isBase ? rankEndpoint(endpoint, rank) : endpoint, origin);
    return { publish: at(publish), replay: replay === null ? null : at(replay), topic };
  });
}

function readSource(rank: unknown, entry: unknown): Source | null {
  if (!isRecord(entry) || !Number.isSafeInteger(rank) || entry.enable_kv_cache_events === false) return null;
  const { publisher = 'zmq', endpoint, replay_endpoint: replay, topic } = entry;
  if (publisher !== 'zmq' || typeof endpoint !== 'string') return null;
  return {
    rank: rank as number,
    publish: endpoint,
    replay: typeof replay === 'string' && replay !== '' ? replay : null,
    topic: typeof topic === 'string' ? topic : '',
  };
}
