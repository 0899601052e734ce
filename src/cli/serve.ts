/**
 * `millrace serve`: the plane as a process. Reads the configuration, starts mock engines when no worker is named, says
 * what runs, and turns signals into an orderly end: the first SIGTERM or SIGINT drains and exits 0, the second exits.
 */
import { readFileSync } from 'node:fs';
import { type Config, loadConfig } from '../config.js';
import { ConfigError } from '../errors.js';
import { LIMITS } from '../limits.js';
import { WORKER_ROLES, type WorkerRole } from '../messages/disagg.js';
import { configuredWorkers } from '../plane/fleet.js';
import { Plane } from '../plane/plane.js';
import { TOKENIZER_NAMES } from '../preprocess/tokenizers/load.js';
import { POLICY_NAMES } from '../router/policies/policies.js';
import { type Clock, systemClock } from '../runtime/clock.js';
import { createLogger, type Logger } from '../runtime/logger.js';
import { settings } from '../settings.js';
import { plainWorker } from '../worker-config.js';
import { banner } from './banner.js';
import { type Command, type FlagKind, readFlags } from './command.js';
import { type MockChildren, startMockChildren } from './mock-children.js';

const SETTINGS = settings(POLICY_NAMES, TOKENIZER_NAMES);
/** Tokenizer of the mock engines. */
const MOCK_TOKENIZER = 'chatml-cl100k';
/** How long the banner waits for the workers' first answers. */
const FIRST_PROBE_MS = 3000;

const FLAGS = SETTINGS.flatMap(setting =>
  setting.flag === undefined ? [] : [{ ...setting, flag: setting.flag }],
);
/** Settings without a flag. */
const SECRETS = SETTINGS.filter(({ flag }) => flag === undefined);

const flagLine = (flag: string, value: string | undefined, text: string): string =>
  `  ${`--${flag}${value === undefined ? '' : ` ${value}`}`.padEnd(26)} ${text}`;

const HELP = `millrace serve: an OpenAI-compatible endpoint over inference workers

Usage: millrace serve [flags]

Examples:
  millrace serve                                       four mock engines, port 8000
  millrace serve --worker http://10.0.0.7:8000 --worker http://10.0.0.8:8000
  millrace serve --worker http://10.0.0.7:8000 --kv-events 'tcp://*:5557' --kv-events-replay 'tcp://*:5558'
  millrace serve --config millrace.yaml --port 9000
  millrace serve --limit requestsMax=20000 --limit bodyBytesMax=16777216

Flags:
${FLAGS.map(({ flag, value, help, default: preset }) => {
  const shown = preset === null || preset === '' || typeof preset === 'object' ? '' : ` (default ${preset})`;
  return flagLine(flag, value, help + shown);
}).join('\n')}
${flagLine('config', 'FILE', 'YAML file with the same settings by name, and models.<name>')}
${flagLine('json', undefined, 'print one JSON line when listening, instead of the banner')}
${flagLine('help-limits', undefined, 'list every limit with unit, range and default')}
${flagLine('help', undefined, 'this text')}

Every setting can come from the environment too: MILLRACE_PORT, MILLRACE_WORKERS (comma-separated), …
A flag wins over the environment, the environment over the file.
Secrets have no flag: ${SECRETS.map(({ key, help }) => `${key} (${help})`).join('; ')}
SIGHUP reads the workers of --config again: new ones are added, missing ones are drained and leave; and the TLS files of
worker links, for connections from then on.
`;

function limitsTable(): string {
  const rows = Object.entries(LIMITS).map(
    ([name, { unit, min, max, default: preset, guards }]) =>
      `  ${name.padEnd(26)} ${String(preset).padStart(11)} ${unit.padEnd(6)} ${`${min}..${max}`.padEnd(22)} ${guards}`,
  );
  return `Limits (name, default, unit, range, what it guards):\n${rows.join('\n')}\n`;
}

function configFromFlags(flags: ReturnType<typeof readFlags>): Config {
  const options: Record<string, unknown> = {};
  for (const { key, flag } of FLAGS) if (flags[flag] !== undefined) options[key] = flags[flag];
  const name = flags.config as string | undefined;
  let file: { name: string; text: string } | undefined;
  if (name !== undefined) {
    try {
      file = { name, text: readFileSync(name, 'utf8') };
    } catch (cause) {
      throw new ConfigError(`--config ${name} cannot be read: ${(cause as NodeJS.ErrnoException).code}`, {
        cause,
      });
    }
  }
  return loadConfig(
    { policies: POLICY_NAMES, tokenizers: TOKENIZER_NAMES },
    { options, env: process.env, ...(file === undefined ? {} : { file }) },
  );
}

/** The role of each mock engine to start. */
function mockRoles(mockWorkers: Config['mockWorkers']): WorkerRole[] {
  if (typeof mockWorkers === 'number') return new Array<WorkerRole>(mockWorkers).fill('both');
  return WORKER_ROLES.flatMap(role => new Array<WorkerRole>(mockWorkers[role]).fill(role));
}

async function withWorkers(
  config: Config,
  clock: Clock,
): Promise<{ config: Config; mocks: MockChildren | null }> {
  const named =
    config.workers.length +
    Object.values(config.models).reduce((sum, model) => sum + model.workers.length, 0);
  // Workers may link themselves in.
  if (named > 0 || config.linkListen !== null) return { config, mocks: null };
  const roles = mockRoles(config.mockWorkers);
  process.stderr.write(`millrace: no --worker given, starting ${roles.length} mock engines …\n`);
  const mocks = await startMockChildren(roles, config.mockSpeed, clock);
  // A model folder stays in force, and is compared with the mock's tokenizer as with any worker's.
  const tokenizer = config.tokenizer ?? (config.modelPath === null ? MOCK_TOKENIZER : null);
  const workers = mocks.addresses.map(plainWorker);
  return { config: Object.freeze({ ...config, workers, tokenizer }), mocks };
}

function announce(
  plane: Plane,
  config: Config,
  port: number,
  mocks: MockChildren | null,
  json: boolean,
): void {
  const host = config.host.includes(':') ? `[${config.host}]` : config.host;
  const url = `http://${host}:${port}`;
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  const { status, workers, models } = plane;
  if (json) {
    const said = { event: 'listening', url, host: config.host, port, pid: process.pid, ...status };
    process.stdout.write(`${JSON.stringify({ ...said, workers, models, mockPids: mocks?.pids ?? [] })}\n`);
    return;
  }
  const areMocks = mocks !== null;
  process.stdout.write(banner({ version, url, status, policy: config.policy, models, workers, areMocks }));
}

/** SIGHUP: the workers of the file are read again; whatever is wrong with it changes nothing. */
function reloadWorkers(
  plane: Plane,
  flags: ReturnType<typeof readFlags>,
  running: Config,
  logger: Logger,
): void {
  const unchanged = 'SIGHUP: nothing was changed';
  if (configuredWorkers(running).length === 0) {
    logger.warn(unchanged, { reason: 'it was started without workers and runs on mock engines' });
    return;
  }
  try {
    const read = configFromFlags(flags);
    const workers = configuredWorkers(read);
    if (workers.length === 0) {
      logger.warn(unchanged, { reason: 'the configuration names no worker' });
      return;
    }
    const { added, leaving, differing } = plane.setWorkers(workers);
    logger.info('SIGHUP: the workers were read again, all other settings stay as they were', {
      added: added.join(','),
      leaving: leaving.join(','),
    });
    if (differing.length > 0)
      logger.warn('SIGHUP: workers that stay keep their settings', { workers: differing.join(',') });
    const others = ({ workers: _, models, ...rest }: Config): string =>
      JSON.stringify([rest, Object.entries(models).map(([name, { workers: __, ...own }]) => [name, own])]);
    if (others(read) !== others(running))
      logger.warn('SIGHUP: settings besides the workers differ; they count from the next start', {});
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    logger.error(unchanged, { reason: error.message });
  }
}

/** SIGHUP: the TLS files of worker links are read again, whatever became of the workers. */
function renewLinkTls(plane: Plane, logger: Logger): void {
  try {
    plane.renewLinkTls();
    logger.info('SIGHUP: the TLS files of worker links were read again');
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    logger.error('SIGHUP: worker links keep their certificate', { reason: error.message });
  }
}

/** Resolves with the exit code once the process has been told to end and has closed everything. */
function untilTold(
  plane: Plane,
  config: Config,
  mocks: MockChildren | null,
  logger: Logger,
): Promise<number> {
  return new Promise(resolve => {
    let isEnding = false;
    const end = (code: number): void => {
      isEnding = true;
      void plane
        .close(config.limits.drainDeadlineMs)
        .then(() => mocks?.close())
        .then(() => resolve(code));
    };
    const onSignal = (signal: NodeJS.Signals): void => {
      if (isEnding) {
        logger.warn('second signal: exiting without waiting for open requests', { signal });
        // With socket threads, which must not be terminated, `exit` would end in an abort with a core dump.
        if (config.socketThreads > 1) process.kill(process.pid, 'SIGKILL');
        process.exit(1);
      }
      const { requestsInFlight } = plane.health();
      logger.info('draining', { signal, requestsInFlight, deadlineMs: config.limits.drainDeadlineMs });
      end(0);
    };
    process.on('SIGTERM', onSignal);
    process.on('SIGINT', onSignal);
    process.on('uncaughtException', error => {
      logger.error('this is a bug in Millrace: draining, then exiting', {
        error: error.stack ?? error.message,
      });
      if (!isEnding) end(1);
    });
  });
}

async function run(argv: readonly string[]): Promise<number> {
  const kinds: Record<string, FlagKind> = { config: 'value', json: 'switch', 'help-limits': 'switch' };
  for (const { flag, several } of FLAGS) kinds[flag] = several === true ? 'values' : 'value';
  const flags = readFlags(argv, kinds);
  if (flags['help-limits'] === true) {
    process.stdout.write(limitsTable());
    return 0;
  }
  const clock = systemClock;
  const given = configFromFlags(flags);
  const logger = createLogger({ level: given.logLevel, format: given.logFormat });
  const { config, mocks } = await withWorkers(given, clock);
  let plane: Plane | null = null;
  try {
    plane = await Plane.start({ config, clock, logger, seed: clock.wallMs() >>> 0 });
    const { port } = await plane.listen(config.host, config.port);
    await plane.workersAnswered(FIRST_PROBE_MS);
    announce(plane, config, port, mocks, flags.json === true);
  } catch (error) {
    await plane?.close(0);
    await mocks?.close();
    throw error;
  }
  const running = plane;
  // Without a file there is nothing to read, and the signal means what it always does: the terminal has gone.
  if (flags.config !== undefined) process.on('SIGHUP', () => reloadWorkers(running, flags, given, logger));
  if (config.linkTlsCert !== null) process.on('SIGHUP', () => renewLinkTls(running, logger));
  const code = await untilTold(plane, config, mocks, logger);
  logger.info('closed', { code });
  return code;
}

/** The `serve` subcommand. */
export const command: Command = {
  name: 'serve',
  summary: 'serve OpenAI requests over workers, or over mock engines without any',
  help: HELP,
  run,
};
