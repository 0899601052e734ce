/**
 * What an engine's error answer means for the request (R5): pass it on, try another worker, or give up. Runs on the
 * socket thread, on the status and the body of an HTTP answer or on the `error` value of a stream frame. The message
 * of a refused request is the engine's own, because the client must learn what to change; nothing else of it leaves.
 */
import type { ErrorCode } from '../errors.js';

/** An engine's error in our terms: code, status and whether another worker may do better. */
export interface EngineError {
  readonly code: ErrorCode;
  /** For the client: no path, stack or address of the engine. */
  readonly message: string;
  /** Status for a response of which nothing was sent yet. */
  readonly httpStatus: number;
  /** Request field that the engine named, or null. */
  readonly param: string | null;
  /** Another worker may answer the same request. */
  readonly retryable: boolean;
}

const MESSAGE_CHARS_MAX = 1000;
/** Marks of a Python stack or of a file of the engine's machine. */
const INTERNALS = /traceback|\bFile "|(?:^|[\s'"`(])(?:\/[\w.@+-]+){2,}|[A-Za-z]:\\/i;
/** The engines' words for a prompt that does not fit, in all versions seen: vLLM's, SGLang's and TensorRT-LLM's. */
const TOO_LONG =
  /maximum context length|max_model_len|longer than the maximum model length|longer than the model's context length|max_seq_len/i;

/**
 * Reads an engine's HTTP error answer. `bodyText` is OpenAI's envelope, vLLM's older flat form, FastAPI's `detail`, or
 * anything else.
 */
export function engineError(status: number, bodyText: string): EngineError {
  let body: unknown;
  try {
    body = JSON.parse(bodyText);
  } catch {
    body = null;
  }
  const outer = isRecord(body) ? body : null;
  return readEngineError(status, isRecord(outer?.error) ? outer.error : outer);
}

/** The same for an error value that is already parsed; null when the engine gave none. */
export function readEngineError(
  status: number,
  error: Readonly<Record<string, unknown>> | null,
): EngineError {
  const said = messageOf(error);
  const param = typeof error?.param === 'string' ? fieldOf(error.param) : null;
  if (status === 429 || status === 503) {
    return {
      code: 'MILLRACE_OVERLOADED',
      message: 'the worker takes no more requests now',
      httpStatus: 529,
      param: null,
      retryable: true,
    };
  }
  if (status === 501) {
    // No worker of the kind can do it.
    return { ...failed(status), retryable: false };
  }
  // 401 and 403 are about the credentials between us and the worker, never about the client's.
  if (status >= 500 || status < 300 || status === 401 || status === 403) {
    return failed(status);
  }
  if (status < 400) {
    return {
      code: 'MILLRACE_WORKER_PROTOCOL',
      message: `the worker answered with status ${status}`,
      httpStatus: 502,
      param: null,
      retryable: true,
    };
  }
  const message = said ?? `the engine refused the request with status ${status}`;
  if (status === 404) {
    // The plan named a model that this worker had when it was probed; another one may still have it.
    return { code: 'MILLRACE_UNKNOWN_MODEL', message, httpStatus: 404, param, retryable: true };
  }
  if (TOO_LONG.test(message)) {
    return { code: 'MILLRACE_CONTEXT_LENGTH', message, httpStatus: 400, param, retryable: false };
  }
  // OpenAI's clients expect 400 for what FastAPI calls 422.
  return {
    code: 'MILLRACE_INVALID_REQUEST',
    message,
    httpStatus: status === 422 ? 400 : status,
    param,
    retryable: false,
  };
}

/** vLLM names the place of what FastAPI refuses as `body.max_tokens`; text that is no JSON has a place without a field. */
function fieldOf(param: string): string | null {
  const field = param.replace(/^body\./, '');
  return /^\d+$/.test(field) ? null : field;
}

function failed(status: number): EngineError {
  const message = `the worker failed with status ${status}`;
  return { code: 'MILLRACE_WORKER_FAILED', message, httpStatus: 502, param: null, retryable: true };
}

function messageOf(error: Readonly<Record<string, unknown>> | null): string | null {
  // The last is TensorRT-LLM's: a text in the place of the envelope.
  const said = error?.message ?? error?.detail ?? error?.error;
  const text = typeof said === 'string' ? said : Array.isArray(said) ? detailText(said) : '';
  if (text === '' || INTERNALS.test(text)) return null;
  return text.slice(0, MESSAGE_CHARS_MAX);
}

/** FastAPI's list of validation errors: `loc` names the field, `msg` says what is wrong. */
function detailText(details: readonly unknown[]): string {
  return details
    .filter(isRecord)
    .map(
      detail =>
        `${Array.isArray(detail.loc) ? `${detail.loc.slice(1).join('.')}: ` : ''}${String(detail.msg)}`,
    )
    .join('; ');
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
