/** The routes of the HTTP frontend (R1): which path does what. Runs on the socket thread. */
import type { ErrorCode } from '../errors.js';
import type { HttpExchange } from '../frontend/http/http-exchange.js';
import { errorResponse } from '../frontend/openai/error-response.js';
import { type ListedModel, modelBody, modelsBody } from '../frontend/openai/models-response.js';
import type { Api } from '../messages/token-request.js';
import { isAdminPath } from './admin.js';
import { DECISIONS_KEPT, type Decision } from './decision-log.js';

/** What `/health` says. */
export interface Health {
  readonly status: 'ok' | 'degraded' | 'unavailable' | 'draining' | 'failed';
  readonly workers: { readonly ready: number; readonly total: number };
  readonly poolThreads: { readonly running: number; readonly off: number };
  /** 'none': no policy and no worker has use for it. 'failed': requests are routed by load alone. */
  readonly prefixIndex: 'none' | 'serving' | 'failed';
  readonly requestsInFlight: number;
}

/** What the routes call. */
export interface RouteTargets {
  accept(api: Api, exchange: HttpExchange): void;
  health(): Health;
  models(): readonly ListedModel[];
  metrics(): Promise<{ readonly text: string; readonly contentType: string }>;
  /** The newest decisions of all socket threads, newest first, `limit` at most. */
  decisions(limit: number): Promise<readonly Decision[]>;
  /** Answers an admin path, or says that the request has no right to it; null: there is no such route. */
  readonly admin: ((exchange: HttpExchange) => boolean) | null;
}

type Handler = (exchange: HttpExchange) => void;

const JSON_HEADERS = [['content-type', 'application/json']] as const;
const API_PATHS: readonly string[] = ['/v1/chat/completions', '/v1/completions', '/v1/models'];
/** Decisions that are told where `?limit=` is not given. */
const DECISIONS_TOLD = 50;
const MODEL_PREFIX = '/v1/models/';

/** Whether a path belongs to the API; the other routes are about the process and stay on Millrace's own server. */
export function isApiPath(path: string): boolean {
  return API_PATHS.includes(path) || path.startsWith(MODEL_PREFIX);
}

/** Answers a path that is no route. */
export function refuseUnknown(exchange: HttpExchange): void {
  refuse(exchange, 'MILLRACE_NOT_FOUND', 'there is no such route');
}

/** Makes the function that takes every request of a server. */
export function createRoutes(targets: RouteTargets): Handler {
  const routes: Readonly<Record<string, Readonly<Record<string, Handler>>>> = {
    '/v1/chat/completions': { POST: exchange => targets.accept('chat', exchange) },
    '/v1/completions': { POST: exchange => targets.accept('completions', exchange) },
    '/v1/models': { GET: exchange => exchange.respond(200, JSON_HEADERS, modelsBody(targets.models())) },
    '/health': {
      GET: exchange => {
        const health = targets.health();
        const canServe = health.status === 'ok' || health.status === 'degraded';
        exchange.respond(canServe ? 200 : 503, JSON_HEADERS, JSON.stringify(health));
      },
    },
    '/live': { GET: exchange => exchange.respond(200, JSON_HEADERS, '{"status":"live"}') },
    '/metrics': { GET: exchange => void respondMetrics(targets, exchange) },
    '/debug/decisions': { GET: exchange => void respondDecisions(targets, exchange) },
  };
  const model: Readonly<Record<string, Handler>> = { GET: exchange => respondModel(targets, exchange) };
  return exchange => {
    const { path } = exchange;
    if (isAdminPath(path) && targets.admin?.(exchange) === true) return;
    const methods = Object.hasOwn(routes, path)
      ? routes[path]!
      : path.startsWith(MODEL_PREFIX)
        ? model
        : null;
    if (methods === null) refuseUnknown(exchange);
    else {
      const handler = Object.hasOwn(methods, exchange.method) ? methods[exchange.method] : undefined;
      if (handler !== undefined) handler(exchange);
      else {
        const allowed = Object.keys(methods).join(', ');
        refuse(exchange, 'MILLRACE_METHOD_NOT_ALLOWED', `this route takes ${allowed}`, [['allow', allowed]]);
      }
    }
  };
}

async function respondMetrics(targets: RouteTargets, exchange: HttpExchange): Promise<void> {
  try {
    const { text, contentType } = await targets.metrics();
    exchange.respond(200, [['content-type', contentType]], text);
  } catch {
    refuse(exchange, 'MILLRACE_INTERNAL', 'the metrics could not be collected');
  }
}

async function respondDecisions(targets: RouteTargets, exchange: HttpExchange): Promise<void> {
  const given = new URLSearchParams(exchange.query).get('limit');
  const limit = given === null ? DECISIONS_TOLD : Number(given);
  if (given === '' || !Number.isInteger(limit) || limit < 1 || limit > DECISIONS_KEPT) {
    refuse(exchange, 'MILLRACE_INVALID_REQUEST', `limit must be a whole number from 1 to ${DECISIONS_KEPT}`);
    return;
  }
  try {
    const decisions = await targets.decisions(limit);
    exchange.respond(200, JSON_HEADERS, JSON.stringify({ decisions }));
  } catch {
    refuse(exchange, 'MILLRACE_INTERNAL', 'the decisions could not be collected');
  }
}

function respondModel(targets: RouteTargets, exchange: HttpExchange): void {
  const name = decodedName(exchange.path.slice(MODEL_PREFIX.length));
  const model = targets.models().find(entry => entry.id === name);
  if (model === undefined) refuse(exchange, 'MILLRACE_UNKNOWN_MODEL', 'the model does not exist');
  else exchange.respond(200, JSON_HEADERS, modelBody(model));
}

function decodedName(raw: string): string | null {
  try {
    return decodeURIComponent(raw);
  } catch {
    return null;
  }
}

function refuse(
  exchange: HttpExchange,
  code: ErrorCode,
  message: string,
  extra: readonly (readonly [string, string])[] = [],
): void {
  const { status, headers, body } = errorResponse(code, message);
  exchange.respond(status, [...headers, ...extra], body);
}
