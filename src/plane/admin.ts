/**
 * The routes under /admin (R1): operators see the workers, add some and take some out, change their LoRA adapters, and put
 * them to sleep. They exist only where the setting `adminToken` is set and a request brings it as its bearer token; to all
 * others they answer like any path that is no route. Socket threads check and read the request, the core carries it out.
 *
 *     GET    /admin/workers                                 the workers, as WorkerReport
 *     POST   /admin/workers   {"url": …, …}                 adds one: the settings of a worker in the configuration
 *     DELETE /admin/workers?url=…[&drain=true]              takes one out, at once or when it carries nothing any more
 *     POST   /admin/workers/sleep?url=…[&level=1]           has its engine give its memory back, once it carries nothing
 *     POST   /admin/workers/wake?url=…[&level=1]            has it serve again
 *     POST   /admin/adapters  {"name", "path", "workers"?}  loads a LoRA adapter on the workers named, or on all
 *     DELETE /admin/adapters?name=…[&worker=…]              unloads it from the workers named, or from all that have it
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { SLEEP_LEVELS, type SleepLevel } from '../engines/control-contract.js';
import type { ErrorCode } from '../errors.js';
import type { HttpExchange } from '../frontend/http/http-exchange.js';
import { errorResponse } from '../frontend/openai/error-response.js';

const JSON_HEADERS = [['content-type', 'application/json']] as const;
const BODY_BYTES_MAX = 65_536;
const BEARER = /^bearer +(\S+)$/i;

/** What an operator asks for; can be sent between threads. `body`: any JSON value. */
export type AdminCall =
  | { readonly kind: 'list' }
  /** The body is a WorkerOptions if it is right. */
  | { readonly kind: 'add'; readonly body: unknown }
  | { readonly kind: 'remove'; readonly url: string; readonly drains: boolean }
  | { readonly kind: 'sleep'; readonly url: string; readonly level: SleepLevel }
  | { readonly kind: 'wake'; readonly url: string; readonly level: SleepLevel | null }
  | { readonly kind: 'load'; readonly body: unknown }
  | { readonly kind: 'unload'; readonly name: string; readonly workers: readonly string[] | null };

/** What became of it: a value to be told as JSON, or an error. 207: a part of it failed; 502: all of it did. */
export type AdminAnswer =
  | { readonly status: 200 | 201 | 202 | 207 | 502; readonly value: unknown }
  | { readonly code: ErrorCode; readonly message: string };

/** What the routes need of their thread. */
export interface AdminOptions {
  readonly token: string;
  readonly bodyDeadlineMs: number;
  /** Carries a call out, on the core. */
  readonly call: (call: AdminCall) => Promise<AdminAnswer>;
}

/** Reads the call of a request with a query; a text is what is wrong with it. */
type QueryReader = (query: URLSearchParams) => AdminCall | string;

/** The body is read before the call is known. */
interface BodyCall {
  readonly withBody: 'add' | 'load';
}

const ROUTES: Readonly<Record<string, Readonly<Record<string, QueryReader | BodyCall>>>> = {
  '/admin/workers': { GET: () => ({ kind: 'list' }), POST: { withBody: 'add' }, DELETE: readRemoval },
  '/admin/workers/sleep': { POST: readSleep },
  '/admin/workers/wake': { POST: readWake },
  '/admin/adapters': { POST: { withBody: 'load' }, DELETE: readUnload },
};

/** Whether a path is one of the admin routes. */
export function isAdminPath(path: string): boolean {
  return Object.hasOwn(ROUTES, path);
}

/** Makes the function that answers the admin paths. False: the request brings no right to them, and is not answered. */
export function createAdminRoute(options: AdminOptions): (exchange: HttpExchange) => boolean {
  const expected = digest(options.token);
  return exchange => {
    const given = BEARER.exec(exchange.header('authorization') ?? '')?.[1] ?? '';
    // Digests have one length, so that the comparison tells neither text nor length of the token by its time.
    if (!timingSafeEqual(digest(given), expected)) return false;
    const methods = ROUTES[exchange.path]!;
    const route = Object.hasOwn(methods, exchange.method) ? methods[exchange.method]! : null;
    if (route === null) {
      const allowed = Object.keys(methods).join(', ');
      refuse(exchange, 'MILLRACE_METHOD_NOT_ALLOWED', `this route takes ${allowed}`, [['allow', allowed]]);
    } else if (typeof route === 'object') readBody(exchange, options, route.withBody);
    else {
      const call = route(new URLSearchParams(exchange.query));
      if (typeof call === 'string') refuse(exchange, 'MILLRACE_INVALID_REQUEST', call);
      else void carryOut(exchange, options, call);
    }
    return true;
  };
}

const digest = (text: string): Buffer => createHash('sha256').update(text).digest();

function readBody(exchange: HttpExchange, options: AdminOptions, kind: BodyCall['withBody']): void {
  exchange.readBody(
    BODY_BYTES_MAX,
    options.bodyDeadlineMs,
    chunks => {
      let body: unknown;
      try {
        body = JSON.parse(Buffer.concat(chunks).toString('utf8'));
      } catch {
        refuse(exchange, 'MILLRACE_INVALID_JSON', 'the body is not JSON');
        return;
      }
      void carryOut(exchange, options, { kind, body });
    },
    fault => {
      if (fault === 'tooLarge')
        refuse(exchange, 'MILLRACE_BODY_TOO_LARGE', `the body is longer than ${BODY_BYTES_MAX} bytes`);
      else if (fault === 'timeout')
        refuse(
          exchange,
          'MILLRACE_BODY_TIMEOUT',
          `the body did not arrive within ${options.bodyDeadlineMs} ms`,
        );
    },
  );
}

/** A name in the query that is not one of `known`, or one that is there twice; null: there is none. */
function strangerIn(query: URLSearchParams, known: readonly string[]): string | null {
  const names = [...query.keys()];
  return names.find((name, at) => !known.includes(name) || names.indexOf(name) !== at) ?? null;
}

function readRemoval(query: URLSearchParams): AdminCall | string {
  const url = query.get('url') ?? '';
  const drain = query.get('drain') ?? 'false';
  if (strangerIn(query, ['url', 'drain']) !== null || url === '' || !['true', 'false'].includes(drain))
    return 'the query must be url=http://host:port and may have drain=true or drain=false';
  return { kind: 'remove', url, drains: drain === 'true' };
}

function readSleep(query: URLSearchParams): AdminCall | string {
  const read = readWake(query);
  return typeof read === 'string' || read.kind !== 'wake'
    ? read
    : { kind: 'sleep', url: read.url, level: read.level ?? 1 };
}

function readWake(query: URLSearchParams): AdminCall | string {
  const url = query.get('url') ?? '';
  if (strangerIn(query, ['url', 'level']) !== null || url === '')
    return 'the query must be url=http://host:port and may have level=1 or level=2';
  const given = query.get('level');
  if (given === null) return { kind: 'wake', url, level: null };
  const level = SLEEP_LEVELS.find(one => String(one) === given);
  return level === undefined
    ? `level must be a whole number from ${SLEEP_LEVELS[0]} to ${SLEEP_LEVELS.at(-1)}; got "${given.slice(0, 20)}"`
    : { kind: 'wake', url, level };
}

function readUnload(query: URLSearchParams): AdminCall | string {
  const name = query.get('name') ?? '';
  const workers = query.getAll('worker');
  const stranger = [...query.keys()].find(key => key !== 'name' && key !== 'worker');
  if (stranger !== undefined || name === '' || query.getAll('name').length > 1 || workers.includes(''))
    return 'the query must be name=… and may have worker=http://host:port, several times';
  return { kind: 'unload', name, workers: workers.length === 0 ? null : workers };
}

async function carryOut(exchange: HttpExchange, { call }: AdminOptions, asked: AdminCall): Promise<void> {
  try {
    const answer = await call(asked);
    if ('code' in answer) refuse(exchange, answer.code, answer.message);
    else exchange.respond(answer.status, JSON_HEADERS, JSON.stringify(answer.value));
  } catch {
    refuse(exchange, 'MILLRACE_INTERNAL', 'the plane did not carry it out');
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
