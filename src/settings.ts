/**
 * The table of process-wide settings: one row gives a setting its configuration key, its flag, its environment
 * variable, its check and its line of `--help`. `config.ts` reads all sources through this table, so that a setting
 * cannot exist in one of them only.
 */
import { resolve } from 'node:path';
import { ConfigError } from './errors.js';
import { LIMITS, type LimitName } from './limits.js';
import { WORKER_ROLES, type WorkerRole } from './messages/disagg.js';
import { nearestName } from './runtime/nearest-name.js';
import { AUTO_EVENTS, eventSource, eventTopic, namedWorkers, replayEndpoint } from './worker-config.js';

/** How a setting was given, for error messages: `--port`, `MILLRACE_PORT`, `port in millrace.yaml`. */
export type Source = string;

/** One row of the table. */
export interface Setting {
  /** Key in the configuration object and in YAML. */
  readonly key: string;
  /** Absent for secrets: a command line is seen by every user of a machine. */
  readonly flag?: string;
  /** Shown in help after the flag; absent for switches. */
  readonly value?: string;
  /** May be given several times; the environment separates by commas. */
  readonly several?: boolean;
  readonly help: string;
  readonly default: unknown;
  /** Checks a raw value (text from a flag or the environment, any YAML value) and gives the typed one. */
  parse(raw: unknown, source: Source): unknown;
}

const shown = (raw: unknown): string => JSON.stringify(raw) ?? String(raw);

/** An integer in a range. */
export function integer(min: number, max: number, unit = '') {
  return (raw: unknown, source: Source): number => {
    const value = typeof raw === 'string' && /^[+-]?\d+$/.test(raw.trim()) ? Number(raw) : raw;
    if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
      throw new ConfigError(
        `${source} is ${shown(raw)}; allowed: an integer from ${min} to ${max}${unit && ` ${unit}`}`,
      );
    }
    return value;
  };
}

/** One of a closed set of names. */
export function oneOf(names: readonly string[]) {
  return (raw: unknown, source: Source): string => {
    if (typeof raw === 'string' && names.includes(raw)) return raw;
    const near = typeof raw === 'string' ? nearestName(raw, names) : null;
    throw new ConfigError(
      `${source} is ${shown(raw)}; allowed: ${names.join(', ')}${near === null ? '' : ` (did you mean ${near}?)`}`,
    );
  };
}

/** A non-empty text. */
export function text(raw: unknown, source: Source): string {
  if (typeof raw === 'string' && raw.length > 0 && raw.length <= 4096) return raw;
  throw new ConfigError(`${source} is ${shown(raw)}; allowed: a text of 1 to 4096 characters`);
}

/** A secret: never part of a message. */
function token(raw: unknown, source: Source): string {
  if (typeof raw === 'string' && /^[\x21-\x7e]{16,4096}$/.test(raw)) return raw;
  throw new ConfigError(`${source} is not shown; allowed: 16 to 4096 visible ASCII characters, no blanks`);
}

/** The name of a header, or '' for none. */
function headerName(raw: unknown, source: Source): string {
  if (typeof raw === 'string' && /^[\w!#$%&'*+.^`|~-]{0,64}$/.test(raw)) return raw.toLowerCase();
  throw new ConfigError(
    `${source} is ${shown(raw)}; allowed: the name of a header (1 to 64 letters, digits, -), or '' for none`,
  );
}

/** A path, made absolute. */
export function path(raw: unknown, source: Source): string {
  return resolve(text(raw, source));
}

/** `unlimited` or a positive factor of the modelled speed. */
function speed(raw: unknown, source: Source): number | 'unlimited' {
  if (raw === 'unlimited') return raw;
  const value = typeof raw === 'string' ? Number(raw) : raw;
  if (typeof value === 'number' && value >= 0.001 && value <= 1e6) return value;
  throw new ConfigError(`${source} is ${shown(raw)}; allowed: a factor from 0.001 to 1000000, or unlimited`);
}

/** Mock engines to start: a number, or one for each role, with which they get a KV connector. */
export type MockWorkers = number | Readonly<Record<WorkerRole, number>>;

function mockWorkers(raw: unknown, source: Source): MockWorkers {
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw)) return integer(1, 64)(raw, source);
  const other = Object.keys(raw).find(key => !WORKER_ROLES.some(role => role === key));
  if (other !== undefined)
    throw new ConfigError(`${source} has "${other}"; allowed: ${WORKER_ROLES.join(', ')}`);
  const given = raw as Partial<Record<WorkerRole, unknown>>;
  const count = (role: WorkerRole): number => integer(0, 64)(given[role] ?? 0, `${source}: ${role}`);
  const counts = { prefill: count('prefill'), decode: count('decode'), both: count('both') };
  if (counts.decode + counts.both === 0)
    throw new ConfigError(`${source} has no worker that answers; give decode or both`);
  return counts;
}

/** Limits by name: `name=value` texts, or a YAML map. */
export function limitValues(raw: unknown, source: Source): Partial<Record<LimitName, number>> {
  const entries: [string, unknown][] =
    typeof raw === 'object' && raw !== null && !Array.isArray(raw)
      ? Object.entries(raw)
      : (Array.isArray(raw) ? raw : [raw]).map(entry => {
          const [name, ...rest] = String(entry).split('=');
          return [name!.trim(), rest.join('=')];
        });
  const values: Partial<Record<LimitName, number>> = {};
  for (const [name, value] of entries) {
    if (!Object.hasOwn(LIMITS, name)) {
      const near = nearestName(name, Object.keys(LIMITS));
      throw new ConfigError(`${source}: there is no limit ${shown(name)}; did you mean ${near}?`);
    }
    const entry = LIMITS[name as LimitName];
    values[name as LimitName] = integer(entry.min, entry.max, entry.unit)(value, `${source}: ${name}`);
  }
  return values;
}

/** The rows; order is the order of `--help`. */
export function settings(policies: readonly string[], tokenizers: readonly string[]): readonly Setting[] {
  return [
    ...serviceSettings(policies, tokenizers),
    ...eventSettings(),
    ...linkSettings(),
    ...threadSettings(),
    ...accessSettings(),
    ...processSettings(),
  ];
}

function serviceSettings(policies: readonly string[], tokenizers: readonly string[]): readonly Setting[] {
  return [
    {
      key: 'host',
      flag: 'host',
      value: 'ADDRESS',
      help: 'address to listen on',
      default: '127.0.0.1',
      parse: text,
    },
    {
      key: 'port',
      flag: 'port',
      value: 'PORT',
      help: 'port to listen on; 0: chosen by the system',
      default: 8000,
      parse: integer(0, 65_535),
    },
    {
      key: 'workers',
      flag: 'worker',
      value: 'URL',
      several: true,
      help: 'a running vLLM, SGLang or TensorRT-LLM server; repeat for more. Without any, mock engines are started',
      default: [],
      parse: namedWorkers,
    },
    {
      key: 'policy',
      flag: 'policy',
      value: 'NAME',
      help: `how a worker is chosen: ${policies.join(', ')}`,
      default: 'ttft',
      parse: oneOf(policies),
    },
    {
      key: 'tokenizer',
      flag: 'tokenizer',
      value: 'NAME',
      help: `tokenizer of the workers' model, for token mode: ${tokenizers.join(', ')}. Without one: relay mode`,
      default: null,
      parse: oneOf(tokenizers),
    },
  ];
}

function eventSettings(): readonly Setting[] {
  return [
    {
      key: 'kvEvents',
      flag: 'kv-events',
      value: 'ENDPOINT',
      help: 'where workers publish KV events, such as tcp://*:5557 (* is the host of each worker); auto: each engine is asked; off: none are taken',
      default: AUTO_EVENTS,
      parse: eventSource,
    },
    {
      key: 'kvEventsReplay',
      flag: 'kv-events-replay',
      value: 'ENDPOINT',
      help: 'where workers repeat KV events that were lost, such as tcp://*:5558',
      default: null,
      parse: replayEndpoint,
    },
    {
      key: 'kvEventsTopic',
      flag: 'kv-events-topic',
      value: 'PREFIX',
      help: 'prefix of the topic of KV events; without it all are taken',
      default: '',
      parse: eventTopic,
    },
  ];
}

function linkSettings(): readonly Setting[] {
  return [
    {
      key: 'linkListen',
      flag: 'link-listen',
      value: 'ADDRESS',
      help: 'where `millrace worker` links in: HOST:PORT, tls://HOST:PORT (0: chosen by the system) or unix:/path; N socket threads above 1 take the next N ports, or path.1 to path.N, too',
      default: null,
      parse: text,
    },
    {
      key: 'linkSecretFile',
      flag: 'link-secret-file',
      value: 'FILE',
      help: 'the secret of both sides of a link, 16 to 4096 bytes; or the variable MILLRACE_LINK_SECRET',
      default: null,
      parse: path,
    },
    {
      key: 'linkTlsCert',
      flag: 'link-tls-cert',
      value: 'FILE',
      help: 'certificate of a tls:// linkListen, as PEM; read again on SIGHUP',
      default: null,
      parse: path,
    },
    {
      key: 'linkTlsKey',
      flag: 'link-tls-key',
      value: 'FILE',
      help: 'key of linkTlsCert, as PEM',
      default: null,
      parse: path,
    },
    {
      key: 'linkTlsCa',
      flag: 'link-tls-ca',
      value: 'FILE',
      help: 'CA of the certificates that workers must bring to a tls:// linkListen, as PEM',
      default: null,
      parse: path,
    },
  ];
}

function threadSettings(): readonly Setting[] {
  return [
    {
      key: 'socketThreads',
      flag: 'socket-threads',
      value: 'N',
      help: 'threads that hold connections; above 1 needs uWebSockets.js and the addon',
      default: 1,
      parse: integer(1, 64),
    },
    {
      key: 'poolThreads',
      flag: 'pool-threads',
      value: 'N',
      help: 'threads that tokenize and route; default: cores - 1, from 1 to 8',
      default: null,
      parse: integer(1, 64),
    },
  ];
}

function accessSettings(): readonly Setting[] {
  return [
    {
      key: 'sessionHeader',
      flag: 'session-header',
      value: 'NAME',
      help: "request header that names a session, whose requests go to one worker; '' for none",
      default: 'x-millrace-session-id',
      parse: headerName,
    },
    {
      key: 'adminToken',
      help: 'secret of the routes under /admin, as a bearer token; without it they do not exist',
      default: null,
      parse: token,
    },
  ];
}

function processSettings(): readonly Setting[] {
  return [
    {
      key: 'modelPath',
      flag: 'model-path',
      value: 'DIR',
      help: "folder of the workers' model (tokenizer.json, chat template, …), for token mode; instead of --tokenizer",
      default: null,
      parse: path,
    },
    {
      key: 'httpServer',
      flag: 'http-server',
      value: 'KIND',
      help: 'auto (uWebSockets.js where it loads), uws or node',
      default: 'auto',
      parse: oneOf(['auto', 'uws', 'node']),
    },
    {
      key: 'mockWorkers',
      flag: 'mock-workers',
      value: 'N',
      help: 'mock engines to start when no --worker is given; in a file also by role: {prefill: 2, decode: 2}',
      default: 4,
      parse: mockWorkers,
    },
    {
      key: 'mockSpeed',
      flag: 'mock-speed',
      value: 'X',
      help: 'speed of the mock engines: a factor, or unlimited',
      default: 1,
      parse: speed,
    },
    {
      key: 'logLevel',
      flag: 'log-level',
      value: 'LEVEL',
      help: 'debug, info, warn, error or silent',
      default: 'info',
      parse: oneOf(['debug', 'info', 'warn', 'error', 'silent']),
    },
    {
      key: 'logFormat',
      flag: 'log-format',
      value: 'FORMAT',
      help: 'text or json, on standard error',
      default: 'text',
      parse: oneOf(['text', 'json']),
    },
    {
      key: 'limits',
      flag: 'limit',
      value: 'NAME=VALUE',
      several: true,
      help: 'sets a limit; repeat for more. `--help-limits` lists them',
      default: {},
      parse: limitValues,
    },
  ];
}
