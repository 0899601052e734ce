/**
 * How workers are named in a configuration (R4, R5): a URL, or an object that also says where the worker publishes its KV
 * events and how many data-parallel ranks it has. Settings of the whole process fill in what a worker leaves out. Pure;
 * `config.ts` reads every list of workers through this file.
 */
import { bootstrapAddress, engineText, workerRole } from './disagg-config.js';
import { ConfigError } from './errors.js';
import type { WorkerRole } from './messages/disagg.js';
import { nearestName } from './runtime/nearest-name.js';

/** Data-parallel ranks of one server, at most. */
const RANKS_MAX = 256;
const PORT_MAX = 65_535;
const TOPIC_CHARS_MAX = 256;
/** In front of an endpoint: we bind it and the engine connects. */
const BIND = 'bind:';
const TCP = /^tcp:\/\/([^\s/]+):(\d{1,5})$/;
const IPC = /^ipc:\/\/\S+$/;

/** In the place of an engine's name: its probe says which it is. */
const AUTO_ENGINE = 'auto';
/** The form of an engine's name; which there are, extensions included, is known when the plane starts. */
const ENGINE_NAME = /^[a-z][a-z0-9_-]{0,63}$/;

/** In the place of an endpoint: the worker's probe says where it publishes, where its engine tells. */
export const AUTO_EVENTS = 'auto';
/** In the place of an endpoint: no events are taken. */
const NO_EVENTS = 'off';

/** A worker as the configuration has it: checked, with the settings of the process filled in. */
export interface WorkerConfig {
  /** Origin: `http://host:port`. */
  readonly url: string;
  /** `auto`, or the engine of an adapter: vllm, sglang, trtllm, or that of an extension. */
  readonly engine: string;
  /** ZMQ endpoint at which rank 0 publishes KV events, or AUTO_EVENTS; null: none are taken. `bind:` as in EventEndpoints. */
  readonly kvEvents: string | null;
  /** ZMQ endpoint at which rank 0 repeats events; null: it does not. */
  readonly kvEventsReplay: string | null;
  /** Prefix of the topic of its events. */
  readonly kvEventsTopic: string;
  /** Data-parallel ranks behind the URL; each is a worker of its own, its event ports are those of rank 0 + rank. */
  readonly dpRanks: number;
  /** Its part in models that are served by prefill and decode workers. */
  readonly role: WorkerRole;
  /** `host:port` of its bootstrap server as decode workers reach it; null: port 8998 of its own host. */
  readonly bootstrap: string | null;
  /** Mooncake: `engine_id` of its engine; null: left out. */
  readonly kvEngineId: string | null;
  /** TensorRT-LLM, generation first: its `ctx_info_endpoint`; null: left out. */
  readonly kvInfoEndpoint: string | null;
}

/** A worker as options and YAML may name it. What is left out is as the process-wide setting says, `null` turns it off. */
export type WorkerOptions =
  | string
  | ({ readonly url: string } & {
      readonly [K in Exclude<keyof WorkerConfig, 'url'>]?: WorkerConfig[K] | null;
    });

/** A checked worker of one list: undefined is what it does not say. */
export type NamedWorker = Pick<WorkerConfig, 'url'> & {
  readonly [K in Exclude<keyof WorkerConfig, 'url'>]: WorkerConfig[K] | undefined;
};

/** The process-wide settings that workers inherit. */
export type EventDefaults = Pick<WorkerConfig, 'kvEvents' | 'kvEventsReplay' | 'kvEventsTopic'>;

const WORKER_KEYS = [
  'url',
  'engine',
  'kvEvents',
  'kvEventsReplay',
  'kvEventsTopic',
  'dpRanks',
  'role',
  'bootstrap',
  'kvEngineId',
  'kvInfoEndpoint',
];

const shown = (raw: unknown): string => JSON.stringify(raw) ?? String(raw);

/** Where workers publish: an endpoint, `auto`, or `off` (null). Throws ConfigError. */
export function eventSource(raw: unknown, source: string): string | null {
  if (raw === NO_EVENTS) return null;
  return raw === AUTO_EVENTS ? raw : eventEndpoint(raw, source, `${AUTO_EVENTS}, ${NO_EVENTS}, `);
}

/** A ZMQ endpoint; `*` as host stands for the worker's own. Throws ConfigError. */
function eventEndpoint(raw: unknown, source: string, others = ''): string {
  const bare = typeof raw === 'string' && raw.startsWith(BIND) ? raw.slice(BIND.length) : raw;
  if (typeof bare === 'string') {
    const port = Number(TCP.exec(bare)?.[2] ?? 0);
    if (IPC.test(bare) || (port >= 1 && port <= PORT_MAX)) return raw as string;
  }
  throw new ConfigError(
    `${source} is ${shown(raw)}; allowed: ${others}tcp://host:port (host * is the worker's own), ipc://path, either after bind:`,
  );
}

/** The endpoint of a replay socket: as above, but always one that we connect to. Throws ConfigError. */
export function replayEndpoint(raw: unknown, source: string): string {
  if (typeof raw === 'string' && raw.startsWith(BIND))
    throw new ConfigError(`${source} is ${shown(raw)}; a replay socket is the engine's: leave out bind:`);
  return eventEndpoint(raw, source);
}

/** A prefix of the topic; '' takes all. Throws ConfigError. */
export function eventTopic(raw: unknown, source: string): string {
  if (typeof raw === 'string' && raw.length <= TOPIC_CHARS_MAX) return raw;
  throw new ConfigError(
    `${source} is ${shown(raw)}; allowed: a text of at most ${TOPIC_CHARS_MAX} characters`,
  );
}

function workerUrl(raw: unknown, source: string): string {
  const url = typeof raw === 'string' && URL.canParse(raw) ? new URL(raw) : null;
  if (url === null || url.protocol !== 'http:' || url.pathname !== '/' || url.search !== '') {
    throw new ConfigError(
      `${source} is ${shown(raw)}; allowed: http://host:port of a worker, without a path`,
    );
  }
  return url.origin;
}

/** The name of an engine. Throws ConfigError. */
export function engineName(raw: unknown, source: string): string {
  if (typeof raw === 'string' && ENGINE_NAME.test(raw)) return raw;
  throw new ConfigError(
    `${source} is ${shown(raw)}; allowed: ${AUTO_ENGINE}, vllm, sglang, trtllm, or the engine of an extension`,
  );
}

function rankCount(raw: unknown, source: string): number {
  if (typeof raw === 'number' && Number.isInteger(raw) && raw >= 1 && raw <= RANKS_MAX) return raw;
  throw new ConfigError(`${source} is ${shown(raw)}; allowed: an integer from 1 to ${RANKS_MAX} ranks`);
}

function namedWorker(raw: unknown, source: string): NamedWorker {
  const isMap = typeof raw === 'object' && raw !== null && !Array.isArray(raw);
  const given: Record<string, unknown> = isMap ? { ...raw } : { url: raw };
  for (const key of Object.keys(given)) {
    if (WORKER_KEYS.includes(key)) continue;
    const near = nearestName(key, WORKER_KEYS);
    throw new ConfigError(`${source}: there is no setting "${key}" of a worker; did you mean "${near}"?`);
  }
  const url = workerUrl(given.url, isMap ? `${source}: url` : source);
  const at = `${source}: of ${url}`;
  const read = <T>(key: string, off: T, check: (value: unknown, source: string) => T): T | undefined => {
    const value = given[key];
    if (value === undefined) return undefined;
    return value === null ? off : check(value, `${at}, ${key}`);
  };
  return {
    url,
    engine: read('engine', AUTO_ENGINE, engineName),
    kvEvents: read<string | null>('kvEvents', null, eventSource),
    kvEventsReplay: read<string | null>('kvEventsReplay', null, replayEndpoint),
    kvEventsTopic: read('kvEventsTopic', '', eventTopic),
    dpRanks: read('dpRanks', 1, rankCount),
    role: read<WorkerRole>('role', 'both', workerRole),
    bootstrap: read<string | null>('bootstrap', null, bootstrapAddress),
    kvEngineId: read<string | null>('kvEngineId', null, engineText),
    kvInfoEndpoint: read<string | null>('kvInfoEndpoint', null, engineText),
  };
}

/** One list of workers, each a WorkerOptions; one alone needs no list. Throws ConfigError. */
export function namedWorkers(raw: unknown, source: string): NamedWorker[] {
  const workers = (Array.isArray(raw) ? raw : [raw]).map(entry => namedWorker(entry, source));
  const urls = workers.map(({ url }) => url);
  const double = urls.find((url, index) => urls.indexOf(url) !== index);
  if (double !== undefined)
    throw new ConfigError(`${source} names ${double} twice; each worker is named once`);
  return workers;
}

/** The endpoint of `rank`, its host that of `url` where it is `*`; null for null. */
export function endpointOf(endpoint: string | null, url: string, rank: number): string | null {
  if (endpoint === null) return null;
  const prefix = endpoint.startsWith(BIND) ? BIND : '';
  const match = TCP.exec(endpoint.slice(prefix.length));
  if (match === null) return endpoint;
  // Where we bind, `*` is every address of ours.
  const host = match[1] === '*' && prefix === '' ? new URL(url).hostname : match[1];
  return `${prefix}tcp://${host}:${Number(match[2]) + rank}`;
}

/** Fills in what the worker does not say. Throws ConfigError where its ranks cannot have the endpoints. */
export function resolveWorker(worker: NamedWorker, defaults: EventDefaults): WorkerConfig {
  const { url, engine = AUTO_ENGINE, dpRanks = 1 } = worker;
  const kvEvents = worker.kvEvents === undefined ? defaults.kvEvents : worker.kvEvents;
  const replay = worker.kvEventsReplay === undefined ? defaults.kvEventsReplay : worker.kvEventsReplay;
  const isGiven = kvEvents !== null && kvEvents !== AUTO_EVENTS;
  const resolved = { kvEvents: isGiven ? kvEvents : null, kvEventsReplay: isGiven ? replay : null };
  for (const [key, endpoint] of Object.entries(resolved)) {
    if (endpoint === null || dpRanks === 1) continue;
    const port = Number(TCP.exec(endpoint.startsWith(BIND) ? endpoint.slice(BIND.length) : endpoint)?.[2]);
    if (Number.isNaN(port))
      throw new ConfigError(`${key} of ${url} is ${shown(endpoint)}; with dpRanks above 1 it must be tcp:`);
    if (port + dpRanks - 1 > PORT_MAX)
      throw new ConfigError(`${key} of ${url} has no room for ${dpRanks} ports from ${port} on (dpRanks)`);
  }
  return Object.freeze({
    url,
    engine,
    kvEvents: isGiven ? endpointOf(kvEvents, url, 0) : kvEvents,
    kvEventsReplay: endpointOf(resolved.kvEventsReplay, url, 0),
    kvEventsTopic: worker.kvEventsTopic ?? defaults.kvEventsTopic,
    dpRanks,
    role: worker.role ?? 'both',
    bootstrap: worker.bootstrap ?? null,
    kvEngineId: worker.kvEngineId ?? null,
    kvInfoEndpoint: worker.kvInfoEndpoint ?? null,
  });
}

/** A worker that no configuration names; what is left out has its default, and no events. */
export function plainWorker(worker: Pick<WorkerConfig, 'url'> & Partial<WorkerConfig>): WorkerConfig {
  return Object.freeze({
    engine: AUTO_ENGINE,
    kvEvents: null,
    kvEventsReplay: null,
    kvEventsTopic: '',
    dpRanks: 1,
    role: 'both',
    bootstrap: null,
    kvEngineId: null,
    kvInfoEndpoint: null,
    ...worker,
  });
}

/**
 * Every worker of a configuration once, by its URL. Throws ConfigError where two lists say different things of one, or two
 * ranks would hear the same events.
 */
export function distinctWorkers(lists: readonly (readonly WorkerConfig[])[]): WorkerConfig[] {
  const workers = new Map<string, WorkerConfig>();
  for (const worker of lists.flat()) {
    const known = workers.get(worker.url) ?? worker;
    if (JSON.stringify(known) !== JSON.stringify(worker))
      throw new ConfigError(`worker ${worker.url} is named twice with different settings`);
    workers.set(worker.url, known);
  }
  const publishers = new Map<string, string>();
  for (const { url, kvEvents, kvEventsTopic, dpRanks } of workers.values()) {
    const isGiven = kvEvents !== null && kvEvents !== AUTO_EVENTS;
    for (let rank = 0; isGiven && rank < dpRanks; rank++) {
      const key = `${endpointOf(kvEvents, url, rank)} ${kvEventsTopic}`;
      const other = publishers.get(key);
      if (other !== undefined) {
        const endpoint = key.split(' ', 1)[0];
        throw new ConfigError(
          `kvEvents: ${url} and ${other} would both publish at ${endpoint}; give each worker its own, or its own kvEventsTopic`,
        );
      }
      publishers.set(key, url);
    }
  }
  return [...workers.values()];
}
