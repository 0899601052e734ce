/**
 * The table of process-wide settings: one row gives a setting its configuration key, its flag, its environment
 * variable, its check and its line of `--help`. `config.ts` reads all sources through this table, so that a setting
 * cannot exist in one of them only.
 */
import {
  headerName,
  integer,
  limitValues,
  mockWorkers,
  modulePaths,
  oneOf,
  path,
  type Source,
  speed,
  text,
  token,
} from './setting-values.js';
import { AUTO_EVENTS, eventSource, eventTopic, namedWorkers, replayEndpoint } from './worker-config.js';

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
  /**
   * Checks a raw value (text from a flag or the environment, any YAML value) and gives the typed one. `folder`: what modules
   * are relative to, that of the configuration file or the working directory.
   */
  parse(raw: unknown, source: Source, folder: string): unknown;
}
/** The rows; order is the order of `--help`. */
export function settings(policies: readonly string[], tokenizers: readonly string[]): readonly Setting[] {
  return [
    ...serviceSettings(policies, tokenizers),
    ...extensionSettings(),
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

function extensionSettings(): readonly Setting[] {
  return [
    {
      key: 'extensions',
      flag: 'extension',
      value: 'MODULE',
      several: true,
      help: 'a module with an adapter for another engine: ./path.js or a package; repeat for more',
      default: [],
      parse: modulePaths,
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
