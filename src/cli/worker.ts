/**
 * `millrace worker`: runs beside one engine, on its host, and links it to data planes: one connection to each instead of
 * an HTTP connection per request, token ids instead of text, KV events and health on the same wire. Ends in order on the
 * first SIGTERM or SIGINT and at once on the second.
 */
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { MessageChannel } from 'node:worker_threads';
import { loadExtensions } from '../engines/extensions.js';
import { NONCE_BYTES } from '../engines/link/link-protocol.js';
import {
  isLocalAddress,
  isLocalHost,
  type LinkAddress,
  parseLinkAddress,
} from '../engines/link/link-secret.js';
import { type LinkTls, readLinkTls } from '../engines/link/link-tls.js';
import { ConfigError } from '../errors.js';
import { DEFAULT_LIMITS } from '../limits.js';
import { readLinkSecret } from '../plane/link-access.js';
import { LinkAgent } from '../plane/link-agent.js';
import { systemClock } from '../runtime/clock.js';
import { createLogger, type Logger, type LogLevel } from '../runtime/logger.js';
import { seededRandom } from '../runtime/random.js';
import { modulePaths } from '../setting-values.js';
import { engineName, namedWorkers, resolveWorker, type WorkerConfig } from '../worker-config.js';
import { type Command, type FlagKind, type FlagValues, readFlags } from './command.js';

const SECRET_VARIABLE = 'MILLRACE_LINK_SECRET';
const PLANES_MAX = 64;
const RANKS_MAX = 256;
const HOUR_MS = 3_600_000;
const CANARY_MS_MIN = 100;
const LOG_LEVELS: readonly LogLevel[] = ['debug', 'info', 'warn', 'error', 'silent'];
const LOG_FORMATS = ['text', 'json'] as const;

const FLAGS = {
  engine: 'value',
  'engine-name': 'value',
  extension: 'values',
  plane: 'values',
  url: 'value',
  id: 'value',
  'kv-events': 'value',
  'kv-events-replay': 'value',
  'kv-events-topic': 'value',
  'dp-ranks': 'value',
  'secret-file': 'value',
  'tls-cert': 'value',
  'tls-key': 'value',
  'tls-ca': 'value',
  'canary-ms': 'value',
  'drain-ms': 'value',
  'log-level': 'value',
  'log-format': 'value',
} as const satisfies Readonly<Record<string, FlagKind>>;

const HELP = `Usage: millrace worker --engine URL --plane ADDRESS [flags]

Runs beside an inference engine and links it to one or more data planes. All streams of the engine travel over one
connection to each plane, as token ids, one frame per step of the engine; KV events and health go the same way. A plane
that loses the link goes on over plain HTTP.

  --engine URL            the engine as it is reached from here, such as http://localhost:8000
  --engine-name NAME      which engine that is: vllm, sglang, trtllm or that of an extension (auto: its probe says)
  --extension MODULE      a module with an adapter for another engine: ./path.js or a package; the planes need it too
  --plane ADDRESS         a data plane: HOST:PORT, tls://HOST:PORT or unix:/path; give it several times for several planes
  --url URL               how the planes name the engine, as in their --worker (what --engine says)
  --id NAME               name of this worker, unique in its fleet (host name and port of the engine)
  --kv-events ENDPOINT    ZMQ endpoint at which the engine publishes KV events, such as tcp://localhost:5557; auto: where
                          its probe says
  --kv-events-replay ENDPOINT
                          ZMQ endpoint at which it repeats them; without it a plane that connects late knows less
  --kv-events-topic TEXT  prefix of their topic ('')
  --dp-ranks N            data-parallel ranks of the engine; event ports are those of rank 0 + rank (1)
  --secret-file FILE      the secret that both sides share, 16 to 4096 bytes; or the variable ${SECRET_VARIABLE}.
                          A plane on another host needs one, or TLS
  --tls-ca FILE           who signs the certificates of tls:// planes, as PEM (the CAs that Node.js trusts). Always checked
  --tls-cert FILE         certificate with which this worker shows tls:// planes who it is, as PEM; with its key
  --tls-key FILE          key of --tls-cert, as PEM
  --canary-ms MS          a request of one token at this period, ${CANARY_MS_MIN} to ${HOUR_MS}; 0: none (0)
  --drain-ms MS           time for running streams after SIGTERM, 0 to ${HOUR_MS} (${DEFAULT_LIMITS.drainDeadlineMs})
  --log-level LEVEL       ${LOG_LEVELS.join(', ')} (info)
  --log-format FORMAT     ${LOG_FORMATS.join(' or ')} (text)

SIGTERM: the planes are told to send nothing new, running streams end, then it exits with 0. Killed outright, its streams
fail over as if the engine had died. SIGHUP: the TLS files are read again, for connections from then on. Only tls://
encrypts: a link to another host that has just a secret belongs in a network that does.

Examples:
  millrace worker --engine http://localhost:8000 --plane unix:/run/millrace/link.sock
  millrace worker --engine http://localhost:8000 --plane 127.0.0.1:7400 --kv-events tcp://localhost:5557 \\
      --kv-events-replay tcp://localhost:5558
  millrace worker --engine http://localhost:8000 --url http://10.0.0.7:8000 --plane 10.0.0.2:7400 \\
      --plane 10.0.0.3:7400 --secret-file /etc/millrace/link.secret --canary-ms 10000
  millrace worker --engine http://localhost:8000 --url http://10.0.0.7:8000 --plane tls://plane.internal:7400 \\
      --tls-ca ca.pem --tls-cert worker.pem --tls-key worker.key
`;

interface WorkerCommand {
  readonly id: string;
  readonly engine: WorkerConfig;
  readonly extensions: readonly string[];
  readonly url: string;
  readonly planes: readonly LinkAddress[];
  readonly secret: Uint8Array | null;
  readonly tls: LinkTls | null;
  /** Reads the TLS files again. Throws ConfigError. */
  readonly readTls: () => LinkTls | null;
  readonly canaryPeriodMs: number;
  readonly drainDeadlineMs: number;
  readonly logger: Logger;
}

function wholeNumber(
  flag: string,
  text: string | undefined,
  preset: number,
  min: number,
  max: number,
): number {
  if (text === undefined) return preset;
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (value >= min && value <= max) return value;
  throw new ConfigError(`--${flag} is '${text}'; allowed: a whole number from ${min} to ${max}`, {
    param: flag,
  });
}

function oneOf<Name extends string>(
  flag: string,
  text: string | undefined,
  preset: Name,
  names: readonly Name[],
): Name {
  const found = names.find(name => name === (text ?? preset));
  if (found !== undefined) return found;
  throw new ConfigError(`--${flag} is '${text}'; allowed: ${names.join(', ')}`, { param: flag });
}

function readEngine(values: FlagValues<typeof FLAGS>): WorkerConfig {
  if (values.engine === undefined)
    throw new ConfigError('--engine is missing: the URL of the engine', { param: 'engine' });
  const given = {
    url: values.engine,
    engine: values['engine-name'] === undefined ? null : engineName(values['engine-name'], '--engine-name'),
    kvEvents: values['kv-events'] ?? null,
    kvEventsReplay: values['kv-events-replay'] ?? null,
    kvEventsTopic: values['kv-events-topic'] ?? '',
    dpRanks: wholeNumber('dp-ranks', values['dp-ranks'], 1, 1, RANKS_MAX),
  };
  if (given.kvEvents === null && (given.kvEventsReplay !== null || given.kvEventsTopic !== ''))
    throw new ConfigError('--kv-events-replay and --kv-events-topic need --kv-events', {
      param: 'kv-events',
    });
  const none = { kvEvents: null, kvEventsReplay: null, kvEventsTopic: '' };
  return resolveWorker(namedWorkers([given], '--engine')[0]!, none);
}

function readTlsFiles(values: FlagValues<typeof FLAGS>): LinkTls | null {
  const file = (flag: 'tls-cert' | 'tls-key' | 'tls-ca') => ({
    name: values[flag] ?? null,
    source: `--${flag}`,
  });
  return readLinkTls(file('tls-cert'), file('tls-key'), file('tls-ca'));
}

function readCommand(argv: readonly string[]): WorkerCommand {
  const values = readFlags(argv, FLAGS);
  const engine = readEngine(values);
  const given = values.plane ?? [];
  if (given.length === 0 || given.length > PLANES_MAX)
    throw new ConfigError(`--plane is given ${given.length} times; allowed: 1 to ${PLANES_MAX}`, {
      param: 'plane',
    });
  const planes = given.map(text => parseLinkAddress(text, '--plane'));
  if (planes.length > 1 && engine.kvEvents?.startsWith('bind:') === true)
    throw new ConfigError('--kv-events with bind: serves one --plane: each plane has its own subscription');
  const url = values.url === undefined ? engine.url : namedWorkers([values.url], '--url')[0]!.url;
  const { host, hostname: engineHost } = new URL(url);
  const isEngineLocal = isLocalHost(engineHost);
  if (isEngineLocal && !planes.every(isLocalAddress))
    throw new ConfigError(
      `${url} means another engine on the host of the plane: say with --url how the plane reaches this one`,
      { param: 'url' },
    );
  const readTls = (): LinkTls | null => readTlsFiles(values);
  const tls = readTls();
  if (tls !== null && !planes.some(({ isTls }) => isTls))
    throw new ConfigError('--tls-ca and --tls-cert need a --plane with tls://HOST:PORT', { param: 'plane' });
  const level = oneOf('log-level', values['log-level'], 'info', LOG_LEVELS);
  return {
    id: values.id ?? (isEngineLocal ? `${hostname()}:${new URL(url).port || '80'}` : host),
    engine,
    extensions: modulePaths(values.extension ?? [], '--extension', process.cwd()),
    url,
    planes,
    secret: readLinkSecret(
      values['secret-file'] ?? null,
      '--secret-file',
      process.env[SECRET_VARIABLE] ?? null,
      SECRET_VARIABLE,
    ),
    tls,
    readTls,
    canaryPeriodMs:
      values['canary-ms'] === '0'
        ? 0
        : wholeNumber('canary-ms', values['canary-ms'], 0, CANARY_MS_MIN, HOUR_MS),
    drainDeadlineMs: wholeNumber('drain-ms', values['drain-ms'], DEFAULT_LIMITS.drainDeadlineMs, 0, HOUR_MS),
    logger: createLogger({ level, format: oneOf('log-format', values['log-format'], 'text', LOG_FORMATS) }),
  };
}

/** Resolves at the first signal. The second ends the process: its streams then fail over. */
function untilSignal(logger: Logger): Promise<void> {
  return new Promise(resolve => {
    let isEnding = false;
    const onSignal = (signal: NodeJS.Signals): void => {
      if (isEnding) {
        logger.warn('second signal: exiting without waiting for running streams', { signal });
        process.exit(1);
      }
      isEnding = true;
      logger.info('draining', { signal });
      resolve();
    };
    process.on('SIGTERM', onSignal).on('SIGINT', onSignal);
  });
}

/** SIGHUP: what is wrong with the files changes nothing. */
function renewTls(agent: LinkAgent, readTls: () => LinkTls | null, logger: Logger): void {
  try {
    agent.renewTls(readTls());
    logger.info('SIGHUP: the TLS files were read again');
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    logger.error('SIGHUP: nothing was changed', { reason: error.message });
  }
}

async function run(argv: readonly string[]): Promise<number> {
  const { drainDeadlineMs, logger, readTls, extensions, ...given } = readCommand(argv);
  const agent = new LinkAgent({
    ...given,
    extensions: await loadExtensions(extensions, systemClock),
    makeNonce: () => randomBytes(NONCE_BYTES),
    limits: DEFAULT_LIMITS,
    clock: systemClock,
    random: seededRandom(randomBytes(4).readUInt32LE()),
    logger,
  });
  // Timers do not keep the process alive, and between two connections there is no socket: this does.
  const { port1 } = new MessageChannel();
  port1.ref();
  const told = untilSignal(logger);
  if (given.tls !== null) process.on('SIGHUP', () => renewTls(agent, readTls, logger));
  agent.start();
  await told;
  const cut = await agent.close(drainDeadlineMs);
  port1.close();
  if (cut > 0) logger.warn('streams were cut off at the drain deadline', { streams: cut });
  logger.info('closed');
  return 0;
}

/** The `worker` subcommand. `run` resolves with 0 after a signal; it throws ConfigError for wrong flags. */
export const command: Command = {
  name: 'worker',
  summary: 'link the engine on this host to data planes',
  help: HELP,
  run,
};
