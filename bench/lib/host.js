/**
 * A host of the plane for benches: the handler in an express app or in a fetch server, the plane's own server, or (kind
 * `client`) only the client's half of streams that never get a second frame. Prints `{"event":"listening","port":…}`;
 * `control` there is a URL that answers with the resident bytes after a collection (needs --expose-gc).
 */
import { once } from 'node:events';
import { createServer } from 'node:http';
import { serve } from '@hono/node-server';
import express from 'express';
import { createDataPlane } from 'millrace';
import { createHttpServer } from '#millrace/frontend/http/server.js';
import { HttpPort } from '#millrace/plane/http-port.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { FaultGuard } from '#millrace/runtime/fault-guard.js';
import { parseFlags } from './report.js';

const flags = parseFlags({
  usage: 'node bench/lib/host.js [flags]',
  summary: 'Mounts a plane over one worker in a host and serves it on a port of the system’s choice.',
  flags: {
    kind: {
      type: 'string',
      choices: ['express', 'fetch', 'plane', 'client'],
      default: 'express',
      help: 'the host',
    },
    worker: { type: 'string', help: 'URL of the worker' },
    tokenizer: { type: 'string', help: 'tokenizer for token mode; none: relay modes' },
  },
  examples: ['node bench/lib/host.js --kind express --worker http://127.0.0.1:9000'],
});

const HOST = '127.0.0.1';
const FRAME = 'data: {"choices":[{"index":0,"delta":{"content":" the"}}]}\n\n';
const STREAM_BUFFER_BYTES = 262_144;

/** @param {import('node:http').Server} server */
async function portOf(server) {
  if (!server.listening) await once(server, 'listening');
  return /** @type {import('node:net').AddressInfo} */ (server.address()).port;
}

/** Streams that stand still after their first frame, without anything behind them. */
async function clientHalves() {
  const guard = new FaultGuard(error => {
    throw error;
  });
  const hooks = {
    nowMs: () => systemClock.nowMs(),
    onDirty: (/** @type {import('#millrace/plane/client-stream.js').ClientStream} */ stream) =>
      setImmediate(() => stream.flush()),
    onPressure: () => {},
    onRelief: () => {},
    onFinished: () => {},
  };
  const streams = new Set();
  const server = await createHttpServer('auto', {
    headerBytesMax: 16_384,
    headerDeadlineMs: 10_000,
    onExchange: exchange => {
      const port = new HttpPort(exchange, guard);
      const stream = port.openStream(STREAM_BUFFER_BYTES, hooks);
      streams.add(stream);
      exchange.onAborted(() => streams.delete(stream));
      stream.pushText(FRAME);
    },
  });
  return server.listen(HOST, 0);
}

/** @returns {Promise<{ port: number }>} */
async function start() {
  if (flags.kind === 'client') return clientHalves();
  const plane = await createDataPlane({
    workers: [flags.worker],
    tokenizer: flags.tokenizer ?? null,
    httpServer: 'auto',
    limits: { requestsMax: 20_000 },
  });
  if (flags.kind === 'plane') return plane.listen({ host: HOST, port: 0 });
  if (flags.kind === 'express') {
    const app = express();
    app.use(plane.nodeHandler());
    return { port: await portOf(app.listen(0, HOST)) };
  }
  const server = serve({ fetch: plane.fetchHandler(), port: 0, hostname: HOST });
  return { port: await portOf(/** @type {import('node:http').Server} */ (server)) };
}

const control = createServer((_req, res) => {
  globalThis.gc?.();
  globalThis.gc?.();
  res.end(String(process.memoryUsage.rss()));
}).listen(0, HOST);
const { port } = await start();
const url = `http://${HOST}:${await portOf(control)}`;
process.stdout.write(`${JSON.stringify({ event: 'listening', port, server: flags.kind, control: url })}\n`);
process.stdin.resume().on('end', () => process.exit(0));
