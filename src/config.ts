/**
 * Configuration: one frozen object made from defaults, a YAML file, `MILLRACE_*` variables and options, each winning
 * over the ones before. Process-wide settings come from the table in settings.ts; `models.<name>` says what differs
 * for one model. A key that does not exist is an error that names the nearest one that does.
 */
import { availableParallelism } from 'node:os';
import { dirname, resolve } from 'node:path';
import { isMap, isScalar, LineCounter, parseDocument } from 'yaml';
import { type DisaggConfig, readDisaggregation } from './disagg-config.js';
import { ConfigError } from './errors.js';
import { DEFAULT_LIMITS, LIMITS, type Limits } from './limits.js';
import type { LogLevel } from './runtime/logger.js';
import { nearestName } from './runtime/nearest-name.js';
import { integer, type MockWorkers, oneOf, path } from './setting-values.js';
import { type Setting, settings } from './settings.js';
import {
  distinctWorkers,
  type EventDefaults,
  type NamedWorker,
  namedWorkers,
  resolveWorker,
  type WorkerConfig,
} from './worker-config.js';

/** What is set for one model. */
export interface ModelConfig {
  /** Workers that serve only this model, besides the shared ones. */
  readonly workers: readonly WorkerConfig[];
  readonly policy: string;
  /** Tokenizer for token mode, or null: relay mode. */
  readonly tokenizer: string | null;
  /** Folder of the model's tokenizer and chat template, absolute, or null; never together with `tokenizer`. */
  readonly path: string | null;
  /** Overrides what the workers report, in tokens. */
  readonly contextLength: number | null;
  /** Overrides the limit of that name, in milliseconds. */
  readonly hedgeAfterMs: number | null;
  /** How prefill and decode workers share its requests, where it has both. */
  readonly disaggregation: DisaggConfig;
}

/** The whole configuration: frozen, every value checked. Units are those of the settings and limits tables. */
export interface Config {
  readonly host: string;
  readonly port: number;
  readonly workers: readonly WorkerConfig[];
  /** What workers that say nothing of their KV events do; see worker-config.ts. */
  readonly kvEvents: string | null;
  readonly kvEventsReplay: string | null;
  readonly kvEventsTopic: string;
  readonly policy: string;
  /** Modules with adapters for further engines, as absolute paths; see engines/extensions.ts. */
  readonly extensions: readonly string[];
  readonly tokenizer: string | null;
  /** Folder of the workers' model, absolute, or null; never together with `tokenizer`. */
  readonly modelPath: string | null;
  /** Where worker links are taken, `HOST:PORT`, `tls://HOST:PORT` or `unix:/path`; null: nowhere. */
  readonly linkListen: string | null;
  /** File with the secret of worker links, absolute; it wins over `linkSecret`. */
  readonly linkSecretFile: string | null;
  /** The secret itself, which only the environment can give: MILLRACE_LINK_SECRET. */
  readonly linkSecret: string | null;
  /** PEM files, absolute, of a `linkListen` with TLS: certificate and key, and the CA of the workers' certificates. */
  readonly linkTlsCert: string | null;
  readonly linkTlsKey: string | null;
  readonly linkTlsCa: string | null;
  readonly httpServer: 'auto' | 'uws' | 'node';
  /** Header whose value names a session; '': sessions are switched off. */
  readonly sessionHeader: string;
  /** Secret of the routes under /admin; null: there are none. */
  readonly adminToken: string | null;
  readonly socketThreads: number;
  readonly poolThreads: number;
  /** How many; by role where they hand over to each other. */
  readonly mockWorkers: MockWorkers;
  readonly mockSpeed: number | 'unlimited';
  readonly logLevel: LogLevel;
  readonly logFormat: 'text' | 'json';
  readonly limits: Limits;
  readonly models: Readonly<Record<string, ModelConfig>>;
}

/** Names that a configuration may refer to; the stages that own them hand them in. */
export interface ConfigNames {
  readonly policies: readonly string[];
  readonly tokenizers: readonly string[];
}

/** Where configuration may come from; each may be absent. */
export interface ConfigSources {
  /** Text of a YAML file and its name for messages. */
  readonly file?: { readonly name: string; readonly text: string };
  /** Environment variables; only those that begin with MILLRACE_ are looked at. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Values by configuration key, as flags or an embedding host give them, with how each was given. */
  readonly options?: Readonly<Record<string, unknown>>;
}

/** Text that must not be seen in a list of processes: no flag and no key. */
const SECRET_VARIABLE = 'MILLRACE_LINK_SECRET';
/** Variables that are no settings: of the build and the tests, and the secret. */
const OTHER_VARIABLES = [
  SECRET_VARIABLE,
  'MILLRACE_REQUIRE_ADDON',
  'MILLRACE_NO_ADDON',
  'MILLRACE_WERROR',
  'MILLRACE_TEST_LONG',
];

const envName = (setting: Setting): string =>
  `MILLRACE_${setting.key.replace(/[A-Z]/g, letter => `_${letter}`).toUpperCase()}`;

function unknownKey(source: string, name: string, valid: readonly string[]): ConfigError {
  return new ConfigError(
    `${source}: there is no setting "${name}"; did you mean "${nearestName(name, valid)}"?`,
  );
}

function readEnvironment(
  table: readonly Setting[],
  env: NonNullable<ConfigSources['env']>,
): Record<string, unknown> {
  const byName = new Map(table.map(setting => [envName(setting), setting]));
  const values: Record<string, unknown> = {};
  for (const [name, raw] of Object.entries(env)) {
    if (!name.startsWith('MILLRACE_') || raw === undefined || OTHER_VARIABLES.includes(name)) continue;
    const setting = byName.get(name);
    if (setting === undefined) throw unknownKey('environment', name, [...byName.keys()]);
    const given = setting.several === true ? raw.split(',') : raw;
    values[setting.key] = setting.parse(given, name, process.cwd());
  }
  return values;
}

/** The settings of a file, and in which line each of them begins. */
interface FileSettings {
  readonly values: Record<string, unknown>;
  readonly lines: ReadonlyMap<unknown, number>;
  /** Its own folder, absolute. */
  readonly folder: string;
}

function readFile(file: NonNullable<ConfigSources['file']>): FileSettings {
  const lines = new Map<unknown, number>();
  const folder = dirname(resolve(file.name));
  let document: unknown;
  try {
    const lineCounter = new LineCounter();
    const parsed = parseDocument(file.text, { lineCounter });
    if (parsed.errors[0] !== undefined) throw parsed.errors[0];
    document = parsed.toJS({ maxAliasCount: 100 });
    for (const { key } of isMap(parsed.contents) ? parsed.contents.items : []) {
      if (isScalar(key) && key.range != null) lines.set(key.value, lineCounter.linePos(key.range[0]).line);
    }
  } catch (cause) {
    // The lines after the first show the place in the file, which may hold what does not belong in a log.
    const [said] = (cause as Error).message.split(/:?\n/, 1);
    throw new ConfigError(`${file.name} is not valid YAML: ${said}`, { cause });
  }
  if (document === null || document === undefined) return { values: {}, lines, folder };
  if (typeof document !== 'object' || Array.isArray(document)) {
    throw new ConfigError(`${file.name} must hold a map of settings at its top level`);
  }
  return { values: document as Record<string, unknown>, lines, folder };
}

function checkKeys(
  table: readonly Setting[],
  source: string,
  given: Record<string, unknown>,
  { lines, folder }: Pick<FileSettings, 'lines' | 'folder'>,
): Record<string, unknown> {
  const valid = [...table.map(setting => setting.key), 'models'];
  const values: Record<string, unknown> = {};
  for (const [key, raw] of Object.entries(given)) {
    const line = lines.get(key);
    const at = line === undefined ? source : `${source}, line ${line}`;
    if (!valid.includes(key)) throw unknownKey(at, key, valid);
    if (raw === undefined || raw === null) continue;
    const setting = table.find(row => row.key === key);
    values[key] = setting === undefined ? raw : setting.parse(raw, `${key} (${at})`, folder);
  }
  return values;
}

const noFile = (): FileSettings => ({ values: {}, lines: new Map(), folder: process.cwd() });

/** A model's own tokenizer or folder takes the place of both shared ones. */
function readTextSource(
  given: Record<string, unknown>,
  at: string,
  names: ConfigNames,
  shared: { tokenizer: string | null; modelPath: string | null },
): Pick<ModelConfig, 'tokenizer' | 'path'> {
  const tokenizer = given.tokenizer ?? null;
  const folder = given.path ?? null;
  if (tokenizer !== null && folder !== null) {
    throw new ConfigError(`${at} has both tokenizer and path; a folder brings its own tokenizer: give one`);
  }
  if (tokenizer === null && folder === null) return { tokenizer: shared.tokenizer, path: shared.modelPath };
  return {
    tokenizer: tokenizer === null ? null : oneOf(names.tokenizers)(tokenizer, `${at}.tokenizer`),
    path: folder === null ? null : path(folder, `${at}.path`),
  };
}

function readHedge(raw: unknown, source: string): number | null {
  const { min, max, unit } = LIMITS.hedgeAfterMs;
  return raw === undefined || raw === null ? null : integer(min, max, unit)(raw, source);
}

function readModels(
  raw: unknown,
  names: ConfigNames,
  shared: { policy: string; tokenizer: string | null; modelPath: string | null; events: EventDefaults },
): Config['models'] {
  if (raw === undefined) return Object.freeze({});
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw)) {
    throw new ConfigError('models must be a map from model name to its settings');
  }
  const valid = ['workers', 'policy', 'tokenizer', 'path', 'contextLength', 'hedgeAfterMs', 'disaggregation'];
  const models: Record<string, ModelConfig> = {};
  for (const [name, value] of Object.entries(raw)) {
    const at = `models.${name}`;
    const given = (value ?? {}) as Record<string, unknown>;
    if (typeof given !== 'object' || Array.isArray(given))
      throw new ConfigError(`${at} must be a map of settings`);
    for (const key of Object.keys(given)) if (!valid.includes(key)) throw unknownKey(at, key, valid);
    models[name] = Object.freeze({
      workers:
        given.workers === undefined || given.workers === null
          ? []
          : namedWorkers(given.workers, `${at}.workers`).map(worker => resolveWorker(worker, shared.events)),
      policy:
        given.policy === undefined ? shared.policy : oneOf(names.policies)(given.policy, `${at}.policy`),
      ...readTextSource(given, at, names, shared),
      contextLength:
        given.contextLength === undefined
          ? null
          : integer(1, 100_000_000, 'tokens')(given.contextLength, `${at}.contextLength`),
      hedgeAfterMs: readHedge(given.hedgeAfterMs, `${at}.hedgeAfterMs`),
      disaggregation: readDisaggregation(given.disaggregation, `${at}.disaggregation`),
    });
  }
  return Object.freeze(models);
}

/** What parsing can make of a body, in its bytes: a list of empty objects takes some 20 times its text. */
const PARSED_BYTES_PER_BYTE = 32;
/** Room for what an ASK holds besides the body. */
const ASK_HEAD_BYTES = 65_536;
/** What the prefix index takes of its memory for each prediction, and before it has room for blocks; both rounded up. */
const INDEX_PREDICTION_BYTES = 64;
const INDEX_FIXED_BYTES = 524_288;

/** Refuses workers of which none answers. */
function checkRoles(source: string, workers: readonly WorkerConfig[]): void {
  if (workers.length > 0 && workers.every(({ role }) => role === 'prefill'))
    throw new ConfigError(`${source} are all for prefill; at least one must have the role decode or both`);
}

/** Refuses limits that each are in range and cannot hold together. */
function checkTogether(limits: Limits): void {
  const { bodyBytesMax, poolHeapBytesMax, ringQueueBytesMax } = limits;
  // JSON.parse cannot be stopped: a thread that is over its heap inside it ends the whole process.
  if (poolHeapBytesMax < PARSED_BYTES_PER_BYTE * bodyBytesMax) {
    throw new ConfigError(
      `limits: poolHeapBytesMax is ${poolHeapBytesMax}; allowed: at least ${PARSED_BYTES_PER_BYTE} × bodyBytesMax (${bodyBytesMax})`,
    );
  }
  if (ringQueueBytesMax < bodyBytesMax + ASK_HEAD_BYTES) {
    throw new ConfigError(
      `limits: ringQueueBytesMax is ${ringQueueBytesMax}; allowed: at least bodyBytesMax (${bodyBytesMax}) + ${ASK_HEAD_BYTES}`,
    );
  }
  const { indexBytes, indexPredictionsMax, eventBatchBytesMax, eventQueueBytesMax } = limits;
  if (indexBytes < INDEX_PREDICTION_BYTES * indexPredictionsMax + INDEX_FIXED_BYTES) {
    throw new ConfigError(
      `limits: indexBytes is ${indexBytes}; allowed: at least ${INDEX_PREDICTION_BYTES} × indexPredictionsMax (${indexPredictionsMax}) + ${INDEX_FIXED_BYTES}`,
    );
  }
  if (eventQueueBytesMax < eventBatchBytesMax) {
    throw new ConfigError(
      `limits: eventQueueBytesMax is ${eventQueueBytesMax}; allowed: at least eventBatchBytesMax (${eventBatchBytesMax})`,
    );
  }
}

/**
 * Makes the configuration. Throws ConfigError, naming the source, the key, the value and what is allowed.
 * @param names policies and tokenizers that exist
 */
export function loadConfig(names: ConfigNames, sources: ConfigSources): Config {
  const table = settings(names.policies, names.tokenizers);
  const file = sources.file === undefined ? noFile() : readFile(sources.file);
  const fileValues = checkKeys(table, sources.file?.name ?? '', file.values, file);
  const envValues = readEnvironment(table, sources.env ?? {});
  const optionValues = checkKeys(table, 'option', { ...sources.options }, noFile());
  const defaults = Object.fromEntries(table.map(setting => [setting.key, setting.default]));
  const merged: Record<string, unknown> = { ...defaults, ...fileValues, ...envValues, ...optionValues };
  const limits: Limits = Object.freeze({
    ...DEFAULT_LIMITS,
    ...(fileValues.limits as object | undefined),
    ...(envValues.limits as object | undefined),
    ...(optionValues.limits as object | undefined),
  });
  const shared = {
    policy: merged.policy as string,
    tokenizer: merged.tokenizer as string | null,
    modelPath: merged.modelPath as string | null,
    events: merged as unknown as EventDefaults,
  };
  if (shared.tokenizer !== null && shared.modelPath !== null) {
    throw new ConfigError('tokenizer and modelPath are both set; a folder brings its own tokenizer: set one');
  }
  if ((limits.ringBytes & (limits.ringBytes - 1)) !== 0) {
    throw new ConfigError(`limits: ringBytes is ${limits.ringBytes}; allowed: a power of two`);
  }
  checkTogether(limits);
  const workers = (merged.workers as NamedWorker[]).map(worker => resolveWorker(worker, shared.events));
  const models = readModels(merged.models, names, shared);
  distinctWorkers([workers, ...Object.values(models).map(model => model.workers)]);
  checkRoles('workers', workers);
  for (const [name, model] of Object.entries(models))
    checkRoles(`models.${name}.workers`, [...model.workers, ...workers]);
  return Object.freeze({
    ...merged,
    workers,
    linkSecret: sources.env?.[SECRET_VARIABLE] ?? null,
    poolThreads: merged.poolThreads ?? Math.min(8, Math.max(1, availableParallelism() - 1)),
    limits,
    models,
  }) as unknown as Config;
}
