/**
 * Handlers for a host's own server (R1): node:http and express by `(req, res, next?)`, fastify as a plugin. Hosts get the
 * API routes below /v1 only; health and metrics are methods of the plane, so that no route of the host is taken. Runs
 * on the host's thread.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { HttpExchange } from '../../frontend/http/http-exchange.js';
import { exchangeFromNode } from '../../frontend/http/node.js';
import type { Clock } from '../../runtime/clock.js';
import { isApiPath } from '../routes.js';

/** A request listener of node:http, and a middleware of express and connect. */
export type NodeHandler = (
  req: IncomingMessage,
  res: ServerResponse,
  next?: (error?: unknown) => void,
) => void;

/** What the fastify plugin uses of fastify, so that its types are not needed. */
export interface FastifyLike {
  removeAllContentTypeParsers(): void;
  // biome-ignore lint/suspicious/noExplicitAny: fastify's own types are generic over the server
  addContentTypeParser(contentType: string, parser: (...args: any[]) => void): unknown;
  // biome-ignore lint/suspicious/noExplicitAny: fastify's own types are generic over the server
  route(options: any): unknown;
}

/** A plugin of fastify: `app.register(plane.fastify, { prefix: '/llm' })`. */
export type FastifyPlugin = (app: FastifyLike) => Promise<void>;

interface FastifyRequestLike {
  readonly raw: IncomingMessage;
  readonly params: unknown;
}

interface FastifyReplyLike {
  readonly raw: ServerResponse;
  hijack(): unknown;
  getHeaders(): Record<string, number | string | string[] | undefined>;
}

type Handle = (exchange: HttpExchange) => void;

const pathOf = (url: string): string => url.split('?', 1)[0]!;

/**
 * Makes the handler. Mounted below a prefix it serves the rest of the path (`/llm` + `/v1/models`), mounted at a part of an
 * API path the whole one (`/v1`). Other paths go to `next`, or get 404 where there is none.
 */
export function createNodeHandler(handle: Handle, clock: Clock): NodeHandler {
  return (req, res, next) => {
    const url = req.url ?? '/';
    const whole = (req as { originalUrl?: unknown }).originalUrl;
    const target = [url, whole].find(
      (candidate): candidate is string => typeof candidate === 'string' && isApiPath(pathOf(candidate)),
    );
    if (target === undefined && next !== undefined) next();
    else handle(exchangeFromNode(req, res, { clock, target: target ?? url }));
  };
}

/** Makes the plugin: the body reaches Millrace unread, and headers that the host's hooks have set are kept. */
export function createFastifyPlugin(handle: Handle, clock: Clock): FastifyPlugin {
  return async app => {
    app.removeAllContentTypeParsers();
    app.addContentTypeParser('*', (_request: unknown, _body: unknown, done: (error: null) => void) =>
      done(null),
    );
    const serve = (method: string, url: string): void => {
      app.route({
        method,
        url,
        handler: (request: FastifyRequestLike, reply: FastifyReplyLike) => {
          reply.hijack();
          for (const [name, value] of Object.entries(reply.getHeaders()))
            if (value !== undefined) reply.raw.setHeader(name, value);
          const rest = (request.params as Record<string, string>)['*'] ?? '';
          const target = url.endsWith('*') ? url.slice(0, -1) + encodeURIComponent(rest) : url;
          handle(exchangeFromNode(request.raw, reply.raw, { clock, target }));
        },
      });
    };
    serve('POST', '/v1/chat/completions');
    serve('POST', '/v1/completions');
    serve('GET', '/v1/models');
    serve('GET', '/v1/models/*');
  };
}
