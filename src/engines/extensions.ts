/**
 * Adapters of engines that Millrace does not know itself (R5): modules that the configuration names under `extensions`,
 * because a function cannot cross to another thread. Each thread that needs adapters imports them anew; what is imported is
 * checked here, so that a wrong module is an error at start that says what is wrong with it. A module gets what it needs of
 * its thread as an argument and has to import nothing of this package but types.
 */
import { pathToFileURL } from 'node:url';
import { ConfigError } from '../errors.js';
import { ANSWER_MODES } from '../messages/records.js';
import type { Clock } from '../runtime/clock.js';
import type { EngineAdapter, EngineStream, WorkerCapabilities } from './contract.js';
import type { ControlOutcome, EngineControl } from './control-contract.js';
import { isObject } from './event-rows.js';
import { AUTO_ENGINE } from './health-contract.js';
import { isPositive, protocolError } from './probe-answers.js';
import type { StreamLimits, StreamScanner } from './stream-decoder.js';
import { openTranslatedStream } from './translated-stream.js';

/** What the frames of one answer of an engine mean, in OpenAI's terms; made anew for each answer. */
export interface AnswerTranslator {
  /**
   * The chunk that an OpenAI server with token ids would have sent for a frame: `{choices: [{index, token_ids,
   * finish_reason?}]}`, or `{error: {message, code}}` with an HTTP status as code. Null: the frame is not what the engine
   * promised, and the stream is broken.
   */
  chunk(frame: Readonly<Record<string, unknown>>): object | null;
  /** The chunk before the end marker, such as `{choices: [], usage: {prompt_tokens, completion_tokens}}`; null: none. */
  last(): object | null;
}

/** What an adapter is given by the thread that it is made for. */
export interface AdapterTools {
  /** Decoder of OpenAI's event stream, for `openStream`. Token ids are read where the choices carry `token_ids`. */
  openSse(limits: StreamLimits): EngineStream;
  /** Decoder of events of the engine's own, each one a JSON object, with `data: [DONE]` behind the last. */
  openTranslated(limits: StreamLimits, translator: AnswerTranslator): EngineStream;
}

/** An adapter of an extension. Without `control` its engine holds no LoRA adapters and cannot sleep. */
export type ExtensionAdapter = Omit<EngineAdapter, 'control'> & { readonly control?: EngineControl };

/** What a module of `extensions` exports as `createEngineAdapter`: makes the adapter of one thread. */
export type EngineAdapterFactory = (tools: AdapterTools) => ExtensionAdapter;

/** A module of `extensions` that was imported. */
export interface EngineExtension {
  /** Its path. */
  readonly module: string;
  readonly create: EngineAdapterFactory;
}

const FACTORY = 'createEngineAdapter';
const ENGINE_NAME = /^[a-z][a-z0-9_-]{0,63}$/;
const METHODS = [
  'probe',
  'tokenize',
  'sampleOf',
  'parseMetrics',
  'tokenModeGap',
  'encode',
  'abortCall',
  'canary',
  'openStream',
] as const;
const CONTROLS = ['loadAdapter', 'unloadAdapter', 'sleep', 'wake', 'isSleeping'] as const;
const NO_CONTROL: ControlOutcome = {
  kind: 'unsupported',
  message: 'the extension of this engine has no control calls',
};
const noControl: EngineControl = {
  holdsAdapters: true,
  loadAdapter: async () => NO_CONTROL,
  unloadAdapter: async () => NO_CONTROL,
  sleep: async () => NO_CONTROL,
  wake: async () => NO_CONTROL,
  isSleeping: async () => null,
};
/** Those that planning calls: whose exceptions end one request, without a word to the operator. */
const PLANNED = ['sampleOf', 'tokenModeGap', 'encode'] as const;
type Method = (...values: never[]) => unknown;
const SHOWN_CHARS_MAX = 100;
const OPEN_BRACE = 0x7b;

/** Time that a module may take to load, its top-level `await` included. */
export const EXTENSION_LOAD_MS = 10_000;

/** Imports the modules, given by their paths, in this thread. Rejects with ConfigError naming the module. */
export async function loadExtensions(modules: readonly string[], clock: Clock): Promise<EngineExtension[]> {
  const loaded: EngineExtension[] = [];
  // One after the other: the first that fails is the one that is told of.
  for (const module of modules) {
    const exported = await importModule(module, clock);
    const create = exported[FACTORY];
    if (typeof create !== 'function')
      throw fault(module, `exports ${FACTORY} as ${kindOf(create)}; allowed: a function`);
    loaded.push({ module, create: create as EngineAdapterFactory });
  }
  return loaded;
}

/** Makes the adapter of an extension for one thread. Throws ConfigError naming the module and the field that is wrong. */
export function createExtensionAdapter(
  { module, create }: EngineExtension,
  tools: AdapterTools,
): EngineAdapter {
  let made: unknown;
  try {
    made = create(tools);
  } catch (cause) {
    throw fault(module, `${FACTORY}() failed: ${textOf(cause)}`, cause);
  }
  if (!isObject(made)) throw fault(module, `${FACTORY}() gave ${kindOf(made)}; allowed: an object`);
  checkFields(module, made);
  return watched(made as unknown as ExtensionAdapter, module);
}

/** `AdapterTools.openTranslated` on a thread with this scanner. */
export function openExtensionStream(
  scanner: StreamScanner,
  limits: StreamLimits,
  translator: AnswerTranslator,
): EngineStream {
  const translate = (method: 'chunk' | 'last', call: () => object | null): string | null => {
    try {
      const chunk = call();
      return chunk === null ? null : `data: ${JSON.stringify(chunk)}\n\n`;
    } catch (error) {
      // One answer is broken by it, which the caller can replace; the thread has others.
      process.emitWarning(`the ${method}() of a translator failed: ${textOf(error)}`);
      return null;
    }
  };
  return openTranslatedStream(scanner, limits, {
    frame(bytes) {
      const frame = readData(bytes);
      return frame === null ? null : translate('chunk', () => translator.chunk(frame));
    },
    last: () => translate('last', () => translator.last()) ?? '',
  });
}

async function importModule(module: string, clock: Clock): Promise<Record<string, unknown>> {
  let giveUp = (): void => {};
  const late = new Promise<never>((_, reject) => {
    giveUp = () => reject(fault(module, `has not loaded within ${EXTENSION_LOAD_MS} ms`));
  });
  const timer = clock.after(EXTENSION_LOAD_MS, () => giveUp());
  try {
    return await Promise.race([import(pathToFileURL(module).href), late]);
  } catch (cause) {
    if (cause instanceof ConfigError) throw cause;
    throw fault(module, `cannot be loaded: ${textOf(cause)}`, cause);
  } finally {
    timer.cancel();
  }
}

function checkFields(module: string, made: Record<string, unknown>): void {
  const check = (field: string, holds: boolean, allowed: string): void => {
    if (!holds)
      throw fault(module, `${FACTORY}() gave ${field} as ${kindOf(made[field])}; allowed: ${allowed}`);
  };
  const { engine, modelOwner } = made;
  const isName = typeof engine === 'string' && ENGINE_NAME.test(engine) && engine !== AUTO_ENGINE;
  check('engine', isName, `a name of a-z, 0-9, - and _ that begins with a letter, not "${AUTO_ENGINE}"`);
  check('modelOwner', modelOwner === undefined || isText(modelOwner), 'a text, or nothing');
  check('hasOpenAiFrames', typeof made.hasOpenAiFrames === 'boolean', 'true or false');
  for (const field of ['healthPath', 'metricsPath']) {
    const path = made[field];
    check(field, isText(path) && path.startsWith('/'), 'a path that begins with /');
  }
  for (const method of METHODS) check(method, typeof made[method] === 'function', 'a function');
  const { control } = made;
  const isControl =
    isObject(control) &&
    typeof control.holdsAdapters === 'boolean' &&
    CONTROLS.every(method => typeof control[method] === 'function');
  check(
    'control',
    control === undefined || isControl,
    `an object of holdsAdapters and the functions ${CONTROLS.join(', ')}, or nothing`,
  );
}

/** The adapter with its mistakes told of: who calls it has an answer for an exception, but none that names the module. */
function watched(adapter: ExtensionAdapter, module: string): EngineAdapter {
  const told = new Set<string>();
  const watch = (method: (typeof PLANNED)[number]): Method => {
    const call = (adapter[method] as Method).bind(adapter);
    return (...values) => {
      try {
        return call(...values);
      } catch (error) {
        if (!told.has(method)) process.emitWarning(`${module}: ${method} failed: ${textOf(error)}`);
        told.add(method);
        throw error;
      }
    };
  };
  const methods = new Map<unknown, Method>(
    METHODS.map(name => [name, (adapter[name] as Method).bind(adapter)]),
  );
  for (const method of PLANNED) methods.set(method, watch(method));
  const probe: EngineAdapter['probe'] = async (get, origin) =>
    checkFacts(module, adapter.engine, await adapter.probe(get, origin));
  methods.set('probe', probe as Method);
  const control = adapter.control ?? noControl;
  // Not a copy, nor on the adapter itself: it may be an instance of a class with fields of its own, and it may be frozen.
  return new Proxy({} as EngineAdapter, {
    get: (_, name) =>
      name === 'control' ? control : (methods.get(name) ?? Reflect.get(adapter, name, adapter)),
  });
}

/** What a probe gave, which goes to other threads and into memory that all share. Throws WorkerError. */
function checkFacts(module: string, engine: string, given: WorkerCapabilities): WorkerCapabilities {
  const facts = given as unknown as Record<string, unknown>;
  const check = (field: string, holds: boolean, allowed: string): void => {
    if (!holds)
      throw protocolError(`${module}: probe() gave ${field} as ${kindOf(facts[field])}; allowed: ${allowed}`);
  };
  check('engine', facts.engine === engine, `"${engine}"`);
  check('version', facts.version === null || isText(facts.version), 'a text, or null');
  const { models, answerModes, notices, events } = facts;
  const isModel = (model: unknown): boolean =>
    isObject(model) && isText(model.id) && (model.contextLength === null || isPositive(model.contextLength));
  const isList = Array.isArray(models) && models.length > 0 && models.every(isModel);
  check('models', isList, 'a list of {id, contextLength}, at least one');
  for (const field of ['blockSize', 'totalBlocks', 'dpRanks'])
    check(field, facts[field] === null || isPositive(facts[field]), 'an integer above 0, or null');
  check('returnsTokenIds', typeof facts.returnsTokenIds === 'boolean', 'true or false');
  const areModes =
    Array.isArray(answerModes) &&
    answerModes.length > 0 &&
    answerModes.every(mode => ANSWER_MODES.includes(mode));
  check('answerModes', areModes, `a list of ${ANSWER_MODES.join(', ')}, at least one`);
  check('events', events === null || Array.isArray(events), 'a list, or null');
  check('notices', Array.isArray(notices) && notices.every(isText), 'a list of texts');
  return given;
}

/** The JSON object of a frame, which has one line of data. */
function readData(bytes: Uint8Array): Record<string, unknown> | null {
  const from = bytes.indexOf(OPEN_BRACE);
  const text = Buffer.from(bytes.buffer, bytes.byteOffset + from, bytes.byteLength - from).toString('utf8');
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : null;
  } catch {
    return null;
  }
}

function fault(module: string, message: string, cause?: unknown): ConfigError {
  return new ConfigError(`extensions: ${module} ${message}`, cause === undefined ? {} : { cause });
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function kindOf(value: unknown): string {
  if (value === undefined) return 'nothing';
  const shown = JSON.stringify(value);
  return typeof value === 'function' ? 'a function' : (shown?.slice(0, SHOWN_CHARS_MAX) ?? typeof value);
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}
