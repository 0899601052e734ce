/**
 * The routes under /admin (R1): operators see the workers, add some and take some out. They exist only where the setting
 * `adminToken` is set and a request brings it as its bearer token; to all others they answer like any path that is no
 * route. Socket threads check and read the request, the core carries it out.
 *
 *     GET    /admin/workers                       the workers, as WorkerReport
 *     POST   /admin/workers  {"url": …, …}        adds one: the settings of a worker in the configuration
 *     DELETE /admin/workers?url=…[&drain=true]    takes one out, at once or when it carries nothing any more
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { ErrorCode } from '../errors.js';
import type { HttpExchange } from '../frontend/http/http-exchange.js';
import { errorResponse } from '../frontend/openai/error-response.js';

/** Path of the one admin resource. */
export const ADMIN_WORKERS_PATH = '/admin/workers';

const JSON_HEADERS = [['content-type', 'application/json']] as const;
const METHODS = 'GET, POST, DELETE';
const BODY_BYTES_MAX = 65_536;
const BEARER = /^bearer +(\S+)$/i;

/** What an operator asks for; can be sent between threads. */
export type AdminCall =
  | { readonly kind: 'list' }
  /** `worker`: any JSON value, a WorkerOptions if it is right. */
  | { readonly kind: 'add'; readonly worker: unknown }
  | { readonly kind: 'remove'; readonly url: string; readonly drains: boolean };

/** What became of it: a value to be told as JSON, or an error. */
export type AdminAnswer =
  | { readonly status: 200 | 201 | 202; readonly value: unknown }
  | { readonly code: ErrorCode; readonly message: string };

/** What the routes need of their thread. */
export interface AdminOptions {
  readonly token: string;
  readonly bodyDeadlineMs: number;
  /** Carries a call out, on the core. */
  readonly call: (call: AdminCall) => Promise<AdminAnswer>;
}

/** Makes the function that answers the admin path. False: the request brings no right to it, and is not answered. */
export function createAdminRoute(options: AdminOptions): (exchange: HttpExchange) => boolean {
  const expected = digest(options.token);
  return exchange => {
    const given = BEARER.exec(exchange.header('authorization') ?? '')?.[1] ?? '';
    // Digests have one length, so that the comparison tells neither text nor length of the token by its time.
    if (!timingSafeEqual(digest(given), expected)) return false;
    if (exchange.method === 'GET') void carryOut(exchange, options, { kind: 'list' });
    else if (exchange.method === 'POST') readWorker(exchange, options);
    else if (exchange.method === 'DELETE') remove(exchange, options);
    else refuse(exchange, 'MILLRACE_METHOD_NOT_ALLOWED', `this route takes ${METHODS}`, [['allow', METHODS]]);
    return true;
  };
}

const digest = (text: string): Buffer => createHash('sha256').update(text).digest();

function readWorker(exchange: HttpExchange, options: AdminOptions): void {
  exchange.readBody(
    BODY_BYTES_MAX,
    options.bodyDeadlineMs,
    chunks => {
      let worker: unknown;
      try {
        worker = JSON.parse(Buffer.concat(chunks).toString('utf8'));
      } catch {
        refuse(exchange, 'MILLRACE_INVALID_JSON', 'the body is not JSON');
        return;
      }
      void carryOut(exchange, options, { kind: 'add', worker });
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

function remove(exchange: HttpExchange, options: AdminOptions): void {
  const query = new URLSearchParams(exchange.query);
  const url = query.get('url') ?? '';
  const drain = query.get('drain') ?? 'false';
  const unknown = [...query.keys()].find(key => key !== 'url' && key !== 'drain');
  if (unknown !== undefined || url === '' || !['true', 'false'].includes(drain)) {
    const message = 'the query must be url=http://host:port and may have drain=true or drain=false';
    refuse(exchange, 'MILLRACE_INVALID_REQUEST', message);
    return;
  }
  void carryOut(exchange, options, { kind: 'remove', url, drains: drain === 'true' });
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
