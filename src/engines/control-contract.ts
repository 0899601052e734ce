/**
 * The border of what changes an engine while it serves (R5): LoRA adapters come and go, and an engine that has nothing to
 * do gives its memory back. An adapter says what to send and what an answer means; the calls themselves are the caller's.
 * Used by the core, on its thread.
 */
import type { EngineRequest } from './client.js';
import { isRecord } from './probe-answers.js';

/**
 * How deep an engine sleeps. 1: its KV cache is gone, the weights wait in host memory or stay where they are. 2: the
 * weights are gone as well and are read anew when it wakes.
 */
export const SLEEP_LEVELS = [1, 2] as const;
/** One of SLEEP_LEVELS. */
export type SleepLevel = (typeof SLEEP_LEVELS)[number];

/** An answer of the engine. */
export interface ControlAnswer {
  readonly status: number;
  readonly body: string;
}

/** Sends a call under a deadline; `body` becomes JSON, absent: none. Rejects with WorkerError where no answer comes. */
export type ControlAsk = (method: 'GET' | 'POST', path: string, body?: object) => Promise<ControlAnswer>;

/** A LoRA adapter and where the engine finds it: a path or a name of its own host. */
export interface AdapterSource {
  readonly name: string;
  readonly path: string;
}

/**
 * What became of a call. already: nothing was to be done. unsupported: this server has no such route, `message` says how to
 * start it with one. refused: the engine's own words, for operators: they may hold its paths.
 */
export type ControlOutcome =
  | { readonly kind: 'done' | 'already' }
  | { readonly kind: 'unsupported' | 'refused'; readonly message: string };

/** What one kind of engine can be told. Every method rejects with WorkerError where the engine does not answer. */
export interface EngineControl {
  /**
   * The engine holds adapters under their names and lists them among its models. False: each request brings the path of
   * its adapter, so that there is nothing to load and nothing is listed.
   */
  readonly holdsAdapters: boolean;
  loadAdapter(ask: ControlAsk, adapter: AdapterSource): Promise<ControlOutcome>;
  unloadAdapter(ask: ControlAsk, name: string): Promise<ControlOutcome>;
  /** For an engine that runs no request. Its KV cache is empty from then on. */
  sleep(ask: ControlAsk, level: SleepLevel): Promise<ControlOutcome>;
  /** `level`: how deep it sleeps. */
  wake(ask: ControlAsk, level: SleepLevel): Promise<ControlOutcome>;
  /** Asks for nothing that would need its memory. Null: it answers, and has no way to say. */
  isSleeping(ask: ControlAsk): Promise<boolean | null>;
}

/** A control call as a request. */
export function controlRequest(
  origin: string,
  method: string,
  path: string,
  body: object | undefined,
): EngineRequest {
  const isEmpty = body === undefined;
  const head = isEmpty ? [] : ([['content-type', 'application/json']] as const);
  return { origin, method, path, head, body: Buffer.from(isEmpty ? '' : JSON.stringify(body)) };
}

const MESSAGE_CHARS_MAX = 1000;

/** 'done'. */
export const DONE: ControlOutcome = { kind: 'done' };
/** 'already'. */
export const ALREADY: ControlOutcome = { kind: 'already' };

/** There is no such route: what the engines' web framework says of it, whereas their own refusals have a message. */
export function isMissingRoute({ status, body }: ControlAnswer): boolean {
  return (status === 404 || status === 405) && /^\{"detail":"(Not Found|Method Not Allowed)"\}$/.test(body);
}

/** A refusal in the engine's words. */
export function refused(answer: ControlAnswer): ControlOutcome {
  const said = saidOf(answer.body);
  const message = said === '' ? `status ${answer.status}` : said.slice(0, MESSAGE_CHARS_MAX);
  return { kind: 'refused', message };
}

/** What the answer of a call means where status 200 says that it was carried out. */
export function outcomeOf(answer: ControlAnswer, unsupported: string): ControlOutcome {
  if (answer.status === 200) return DONE;
  return isMissingRoute(answer) ? { kind: 'unsupported', message: unsupported } : refused(answer);
}

/** vLLM's envelope, SGLang's `error_message`, its flat form, FastAPI's `detail`, or the text itself. */
function saidOf(body: string): string {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    return body.trim();
  }
  if (!isRecord(value)) return body.trim();
  const { error } = value;
  const said = [isRecord(error) ? error.message : error, value.error_message, value.message, value.detail];
  return said.find((one): one is string => typeof one === 'string') ?? body.trim();
}
