/**
 * `millrace mock`: one or more mock engines in one process, until a signal or the end of stdin. Stands in for a fleet of
 * vLLM, SGLang or TensorRT-LLM servers: for a first try of `millrace serve`, for benches and for tests.
 */
import { ConfigError } from '../errors.js';
import {
  DISAGG_RANGES,
  DISAGG_ROLES,
  KV_CONNECTORS,
  LOAD_FAILURE_POLICIES,
} from '../simulate/disagg/disagg-settings.js';
import type { KvConnector } from '../simulate/disagg/kv-connector.js';
import type { TransferOptions } from '../simulate/disagg/kv-memory.js';
import type { DisaggOptions } from '../simulate/disagg/open-connector.js';
import { ENGINE_SETTING_RANGES, type EngineSettings } from '../simulate/engine-settings.js';
import { FAULT_KINDS, parseFaultRates } from '../simulate/faults.js';
import {
  loadMockTokenizer,
  MOCK_ENGINES,
  MOCK_MODEL,
  type MockEngine,
  type MockEngineOptions,
  startMockEngine,
} from '../simulate/mock-engine.js';
import { KV_ORDERS } from '../simulate/tiny/kv-pages.js';
import { EVENT_FORMS, EVENT_HASHES } from '../simulate/vllm/kv-event-encoder.js';
import type { MockEventOptions } from '../simulate/vllm/kv-events.js';
import { TRANSPORTS } from '../transfer/index.js';
import { type Command, type FlagKind, type FlagValues, readFlags } from './command.js';

const ENGINES_MAX = 64;
const PORT_MAX = 65_535;
/** What moves the blocks. */
const KV_TRANSFERS = ['http', 'millrace'] as const;

/** Flags that are a setting of the simulated engine. */
const SETTING_FLAGS = {
  speed: 'speed',
  'eos-rate': 'eosRate',
  seed: 'seed',
  blocks: 'numGpuBlocks',
  'block-size': 'blockSize',
  'max-num-seqs': 'maxNumSeqs',
  'max-batched-tokens': 'maxNumBatchedTokens',
  'max-model-len': 'maxModelLen',
  'tokens-per-step': 'tokensPerStep',
} as const satisfies Record<string, keyof EngineSettings>;

const FLAGS = {
  engine: 'value',
  'incremental-streams': 'switch',
  count: 'value',
  host: 'value',
  port: 'value',
  model: 'value',
  faults: 'value',
  events: 'switch',
  'events-port': 'value',
  'events-replay-port': 'value',
  'event-form': 'value',
  'event-hashes': 'value',
  'event-loss': 'value',
  'exit-with-stdin': 'switch',
  json: 'switch',
  speed: 'value',
  'eos-rate': 'value',
  seed: 'value',
  blocks: 'value',
  'block-size': 'value',
  'max-num-seqs': 'value',
  'max-batched-tokens': 'value',
  'max-model-len': 'value',
  'tokens-per-step': 'value',
  tiny: 'switch',
  disagg: 'switch',
  'kv-connector': 'value',
  'kv-role': 'value',
  'kv-port': 'value',
  'kv-load-failure': 'value',
  'kv-lease-ms': 'value',
  'kv-pull-deadline-ms': 'value',
  'kv-bytes-per-token': 'value',
  'kv-bytes-per-second': 'value',
  'kv-transfer': 'value',
  'kv-transport': 'value',
  'kv-layout': 'value',
} as const satisfies Readonly<Record<string, FlagKind>>;

const EVENT_FLAGS = [
  'events-port',
  'events-replay-port',
  'event-form',
  'event-hashes',
  'event-loss',
] as const satisfies readonly (keyof typeof FLAGS)[];

const DISAGG_FLAGS = [
  'kv-connector',
  'kv-role',
  'kv-port',
  'kv-load-failure',
  'kv-lease-ms',
  'kv-pull-deadline-ms',
  'kv-bytes-per-token',
  'kv-bytes-per-second',
  'kv-transfer',
  'kv-transport',
  'kv-layout',
] as const satisfies readonly (keyof typeof FLAGS)[];

/** Flags that are a number of the hand-over. */
const DISAGG_NUMBERS = {
  'kv-lease-ms': 'leaseMs',
  'kv-pull-deadline-ms': 'pullDeadlineMs',
  'kv-bytes-per-token': 'kvBytesPerToken',
  'kv-bytes-per-second': 'kvBytesPerSecond',
} as const satisfies Record<string, keyof typeof DISAGG_RANGES>;

interface MockCommand {
  readonly count: number;
  readonly engine: MockEngineOptions;
  readonly exitWithStdin: boolean;
  readonly json: boolean;
}

const standard = (name: keyof EngineSettings): number => ENGINE_SETTING_RANGES[name].default;

const HELP = `Usage: millrace mock [flags]

Starts mock engines: a simulated scheduler behind the HTTP routes of the engine that they play. Needs no GPU and no model. The text of an
answer is a function of all tokens before it, so an answer that moves to another engine goes on unchanged.

  --engine NAME           ${MOCK_ENGINES.join(', ')} (vllm)
  --incremental-streams   sglang: frames of /generate hold what is new instead of the whole answer
  --count N               engines, 1 to ${ENGINES_MAX} (1)
  --host ADDRESS          address to listen on (127.0.0.1)
  --port P                port of the first engine, the next ones follow; 0: chosen by the system (0)
  --model NAME            model name (${MOCK_MODEL})
  --speed X|unlimited     divides modelled time; unlimited: computing takes no time (${standard('speed')})
  --eos-rate R            chance of an end at each token; 0: answers have exactly max_tokens (${standard('eosRate')})
  --seed S                seeds text and faults (${standard('seed')})
  --blocks N              KV blocks (${standard('numGpuBlocks')})
  --block-size N          tokens per KV block (${standard('blockSize')})
  --max-num-seqs N        requests that run at one time (${standard('maxNumSeqs')})
  --max-batched-tokens N  tokens computed per pass (${standard('maxNumBatchedTokens')})
  --max-model-len N       prompt and output tokens of a request (${standard('maxModelLen')}, or what the blocks hold)
  --tokens-per-step N     tokens that an answer gains per pass, as with speculative decoding (${standard('tokensPerStep')})
  --faults LIST           faults per request, as kind=probability,…; kinds: ${FAULT_KINDS.join(', ')}
  --events                publish KV events over ZeroMQ, as vLLM does: PUB and a replay ROUTER per engine; trtllm: keep them
                          for POST /kv_cache_events, without ports, form and hashes
  --events-port P         PUB port of the first engine, the next ones follow; 0: chosen by the system (0)
  --events-replay-port P  replay port, likewise (0)
  --event-form FORM       array: vLLM before 0.24; map: later ones; sglang: one store per block (as the engine does)
  --event-hashes KIND     int, signed or bytes (int, for sglang signed)
  --event-loss R          chance that a batch is not sent live and can only be replayed; trtllm: that a poll finds none (0)
  --tiny                  a tiny transformer with KV in real pages makes the tokens: each byte of them counts
  --disagg                hand KV over between engines, as the engine that is played does
  --kv-connector NAME     vllm: ${KV_CONNECTORS.join(', ')} (${KV_CONNECTORS[0]})
  --kv-role ROLE          sglang: ${DISAGG_ROLES.join(', ')} (${DISAGG_ROLES[0]})
  --kv-port P             port of the side channel of the first engine, the next ones follow (0)
  --kv-load-failure NAME  ${LOAD_FAILURE_POLICIES.join(', ')} (${LOAD_FAILURE_POLICIES[0]})
  --kv-lease-ms N         how long blocks are kept without a word from decode (${DISAGG_RANGES.leaseMs.default})
  --kv-pull-deadline-ms N how long a pull may take (${DISAGG_RANGES.pullDeadlineMs.default})
  --kv-bytes-per-token N  modelled size of KV (${DISAGG_RANGES.kvBytesPerToken.default})
  --kv-bytes-per-second N modelled bandwidth of a pull (${DISAGG_RANGES.kvBytesPerSecond.default})
  --kv-transfer NAME      what moves the blocks: ${KV_TRANSFERS.join(', ')} (${KV_TRANSFERS[0]}). millrace: the transfer engine, which needs the addon
                          and --tiny: its pages are a pool of the engine, all of whose memory is taken at the start (blocks ×
                          block size × 256 bytes); the modelled time of a pull comes on top
  --kv-transport LIST     millrace: transports that may be used, of ${TRANSPORTS.join(', ')} (all that are available, the
                          cheapest that reaches the other engine first)
  --kv-layout ORDER       millrace: order in a block: ${KV_ORDERS.join(', ')} (${KV_ORDERS[0]}); each is turned into the other
  --exit-with-stdin       end when stdin closes, so that nothing outlives a parent that was killed
  --json                  one JSON object per line on stdout

Examples:
  millrace mock
  millrace mock --count 4 --port 9001 --speed 10
  millrace mock --speed unlimited --faults error500=0.05,dieAfter=0.01 --seed 7
  millrace mock --engine sglang --incremental-streams --block-size 16
  millrace mock --count 2 --events --events-port 5557 --events-replay-port 6557 --event-loss 0.01

Prefill and decode in two processes, the KV through shared memory, behind one endpoint:
  millrace mock --tiny --disagg --kv-transfer millrace --kv-transport shm --port 9001
  millrace mock --tiny --disagg --kv-transfer millrace --kv-transport shm --port 9002
  millrace serve --config examples/kv-transfer.yaml
`;

function numberIn(flag: string, text: string, min: number, max: number, integer: boolean): number {
  const value = text.trim() === '' ? Number.NaN : Number(text);
  if (value >= min && value <= max && (!integer || Number.isInteger(value))) return value;
  const kind = integer ? 'an integer' : 'a number';
  throw new ConfigError(`--${flag} must be ${kind} from ${min} to ${max}; got '${text}'`, { param: flag });
}

function oneOf<Name extends string>(flag: string, text: string, names: readonly Name[]): Name {
  const found = names.find(name => name === text);
  if (found !== undefined) return found;
  throw new ConfigError(`--${flag} must be one of ${names.join(', ')}; got '${text}'`, { param: flag });
}

function readEvents(values: FlagValues<typeof FLAGS>, count: number): MockEventOptions | null {
  const port = values['events-port'];
  const replayPort = values['events-replay-port'];
  const form = values['event-form'];
  const hashes = values['event-hashes'];
  const loss = values['event-loss'];
  if (values.events !== true) {
    const needless = EVENT_FLAGS.find(flag => values[flag] !== undefined);
    if (needless === undefined) return null;
    throw new ConfigError(`--${needless} needs --events`, { param: needless });
  }
  return {
    port: numberIn('events-port', port ?? '0', 0, PORT_MAX - count + 1, true),
    replayPort: numberIn('events-replay-port', replayPort ?? '0', 0, PORT_MAX - count + 1, true),
    loss: numberIn('event-loss', loss ?? '0', 0, 1, false),
    ...(form === undefined ? {} : { form: oneOf('event-form', form, EVENT_FORMS) }),
    ...(hashes === undefined ? {} : { hashes: oneOf('event-hashes', hashes, EVENT_HASHES) }),
  };
}

function readDisagg(values: FlagValues<typeof FLAGS>, count: number): DisaggOptions | null {
  const { 'kv-connector': connector, 'kv-role': role, 'kv-load-failure': loadFailure } = values;
  if (values.disagg !== true) {
    const needless = DISAGG_FLAGS.find(flag => values[flag] !== undefined);
    if (needless === undefined) return null;
    throw new ConfigError(`--${needless} needs --disagg`, { param: needless });
  }
  const numbers: Partial<Record<keyof typeof DISAGG_RANGES, number>> = {};
  for (const [flag, setting] of Object.entries(DISAGG_NUMBERS)) {
    const text = values[flag as keyof typeof DISAGG_NUMBERS];
    const { min, max } = DISAGG_RANGES[setting];
    if (text !== undefined) numbers[setting] = numberIn(flag, text, min, max, true);
  }
  const transfer = readTransfer(values);
  return {
    ...numbers,
    ...(transfer === undefined ? {} : { transfer }),
    port: numberIn('kv-port', values['kv-port'] ?? '0', 0, PORT_MAX - count + 1, true),
    ...(connector === undefined ? {} : { connector: oneOf('kv-connector', connector, KV_CONNECTORS) }),
    ...(role === undefined ? {} : { role: oneOf('kv-role', role, DISAGG_ROLES) }),
    ...(loadFailure === undefined
      ? {}
      : { loadFailure: oneOf('kv-load-failure', loadFailure, LOAD_FAILURE_POLICIES) }),
  };
}

/** Undefined: the blocks go over the side channel. */
function readTransfer(values: FlagValues<typeof FLAGS>): TransferOptions | undefined {
  const { 'kv-transfer': transfer, 'kv-transport': transports, 'kv-layout': order } = values;
  if (oneOf('kv-transfer', transfer ?? 'http', KV_TRANSFERS) === 'http') {
    const needless = (['kv-transport', 'kv-layout'] as const).find(flag => values[flag] !== undefined);
    if (needless === undefined) return undefined;
    throw new ConfigError(`--${needless} needs --kv-transfer millrace`, { param: needless });
  }
  if (values.tiny !== true)
    throw new ConfigError('--kv-transfer millrace needs --tiny: other mocks only model their KV', {
      param: 'kv-transfer',
    });
  return {
    ...(transports === undefined
      ? {}
      : { transports: transports.split(',').map(name => oneOf('kv-transport', name, TRANSPORTS)) }),
    ...(order === undefined ? {} : { order: oneOf('kv-layout', order, KV_ORDERS) }),
  };
}

function readCommand(argv: readonly string[]): MockCommand {
  const values = readFlags(argv, FLAGS);
  const count = numberIn('count', values.count ?? '1', 1, ENGINES_MAX, true);
  const settings: Partial<Record<keyof EngineSettings, number | 'unlimited'>> = {};
  for (const [flag, setting] of Object.entries(SETTING_FLAGS)) {
    const text = values[flag as keyof typeof SETTING_FLAGS];
    if (text === undefined) continue;
    const { min, max, integer } = ENGINE_SETTING_RANGES[setting];
    settings[setting] =
      setting === 'speed' && text === 'unlimited' ? text : numberIn(flag, text, min, max, integer);
  }
  const { host, model, faults, engine: kind } = values;
  const incrementalStreams = values['incremental-streams'];
  if (incrementalStreams === true && kind !== 'sglang') {
    throw new ConfigError('--incremental-streams needs --engine sglang', { param: 'incremental-streams' });
  }
  const events = readEvents(values, count);
  const disagg = readDisagg(values, count);
  const engine = {
    ...(settings as Partial<EngineSettings>),
    port: numberIn('port', values.port ?? '0', 0, PORT_MAX - count + 1, true),
    ...(kind === undefined ? {} : { engine: oneOf('engine', kind, MOCK_ENGINES) }),
    ...(incrementalStreams === undefined ? {} : { incrementalStreams }),
    ...(host === undefined ? {} : { host }),
    ...(model === undefined ? {} : { model }),
    ...(faults === undefined ? {} : { faults: parseFaultRates(faults) }),
    ...(events === null ? {} : { events }),
    ...(values.tiny === undefined ? {} : { tiny: values.tiny }),
    ...(disagg === null ? {} : { disagg }),
  };
  return { count, engine, exitWithStdin: values['exit-with-stdin'] ?? false, json: values.json ?? false };
}

/** Calls `stop` on SIGTERM, on SIGINT and, where asked for, when stdin closes. Returns what takes it all back. */
function listenForStop(exitWithStdin: boolean, stop: () => void): () => void {
  const { stdin } = process;
  process.on('SIGTERM', stop).on('SIGINT', stop);
  if (exitWithStdin) stdin.on('close', stop).on('end', stop).on('error', stop).resume();
  return () => {
    process.off('SIGTERM', stop).off('SIGINT', stop);
    if (exitWithStdin) stdin.off('close', stop).off('end', stop).destroy();
  };
}

async function startAll(given: MockCommand, engines: MockEngine[]): Promise<void> {
  const tokenizer = await loadMockTokenizer();
  const { events, disagg } = given.engine;
  for (let at = 0; at < given.count; at++) {
    const portAt = (first = 0): number => (first === 0 ? 0 : first + at);
    const engine = await startMockEngine({
      ...given.engine,
      port: portAt(given.engine.port),
      faultSeed: (given.engine.seed ?? standard('seed')) + at,
      tokenizer,
      ...(disagg === undefined ? {} : { disagg: { ...disagg, port: portAt(disagg.port) } }),
      ...(events === undefined
        ? {}
        : { events: { ...events, port: portAt(events.port), replayPort: portAt(events.replayPort) } }),
    });
    engines.push(engine);
    process.stdout.write(`${given.json ? jsonLine(engine) : textLine(engine)}\n`);
  }
}

function jsonLine({ url, model, events, connector }: MockEngine): string {
  const endpoints = { kvEvents: events?.publish ?? null, kvEventsReplay: events?.replay ?? null };
  const handover = connector && {
    kvSideChannel: sideChannelOf(connector),
    engineId: connector.engineId,
  };
  return JSON.stringify({ event: 'listening', url, model, ...endpoints, ...handover });
}

function textLine({ url, model, events, connector, memory }: MockEngine): string {
  const kvEvents = events === null ? '' : `, KV events on ${events.publish}, replay on ${events.replay}`;
  const side = connector && sideChannelOf(connector);
  const handover = side === null ? '' : `, KV side channel on ${side}`;
  return `mock engine ${model} on ${url}${kvEvents}${handover}${memory === null ? '' : `, its transfers at ${side}/transfer`}`;
}

function sideChannelOf({ options: { carrier } }: KvConnector): string {
  return `http://${carrier.host}:${carrier.port}`;
}

async function run(argv: readonly string[]): Promise<number> {
  const engines: MockEngine[] = [];
  let stopListening = (): void => {};
  try {
    const given = readCommand(argv);
    const stopped = new Promise<void>(resolve => {
      stopListening = listenForStop(given.exitWithStdin, resolve);
    });
    await startAll(given, engines);
    await stopped;
    return 0;
  } catch (error) {
    process.stderr.write(`millrace mock: ${(error as Error).message}\n`);
    return error instanceof ConfigError ? 2 : 1;
  } finally {
    await Promise.all(engines.map(engine => engine.close()));
    stopListening();
  }
}

/** The `mock` subcommand. `run` resolves with the exit code: 0 after a stop, 1 if it cannot listen, 2 for wrong flags. */
export const command: Command = {
  name: 'mock',
  summary: 'start mock engines with the HTTP routes of vLLM, SGLang or TensorRT-LLM',
  help: HELP,
  run,
};
