/**
 * Picks the HTTP server (R1, R7): uWebSockets.js where its binary loads on this platform, else node:http, which does the
 * same at about twice the CPU per request. Called once per socket thread by the plane and by the mock engine.
 */
import { ConfigError } from '../../errors.js';
import type { HttpServer, HttpServerOptions } from './http-exchange.js';
import { createNodeServer } from './node.js';

/** 'auto' prefers uWebSockets.js; 'uws' rejects where it does not load. */
export type HttpServerKind = 'auto' | 'uws' | 'node';

/** Creates a server that does not listen yet. The fallback of 'auto' shows in `notice`. */
export async function createHttpServer(
  kind: HttpServerKind,
  options: HttpServerOptions,
): Promise<HttpServer> {
  if (kind === 'node') return createNodeServer(options, null);
  try {
    // Imported late: a platform without the binary must still serve, and its header limit is read when it loads.
    const { createUwsServer } = await import('./uws.js');
    return await createUwsServer(options);
  } catch (error) {
    if (kind === 'uws' || error instanceof ConfigError) throw error;
    const reason = error instanceof Error ? error.message.split('\n', 1)[0] : String(error);
    return createNodeServer(
      options,
      `HTTP server: node:http, because uWebSockets.js does not load: ${reason}`,
    );
  }
}
