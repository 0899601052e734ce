/**
 * Carries blocks between mock engines of any processes, over a side channel of its own: HTTP on one port, which is also
 * what routers see as bootstrap server (GET /health, GET /query). A body of blocks has its length in front, leaves page
 * by page as the socket takes it, and goes straight into the pages of the puller. One per engine, on its thread.
 *
 *     POST /pull KvAsk → 200 pages, one after the other | 409 {"error":"…"}      POST /notify → 204 | 404
 */
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Clock } from '../../runtime/clock.js';
import type { KvPages } from '../tiny/kv-pages.js';
import {
  HandoverError,
  type KvAsk,
  type KvCarrier,
  type KvNotice,
  type KvPeer,
  type KvRead,
  type KvSource,
} from './kv-carrier.js';

const ASK_BYTES_MAX = 4 * 1024 * 1024;
const ERROR_BYTES_MAX = 4096;
const NOTIFY_DEADLINE_MS = 2000;

/** What a carrier needs. */
export interface HttpCarrierOptions {
  readonly source: KvSource;
  /** Null for an engine that only models its KV. */
  readonly pages: KvPages | null;
  readonly host: string;
  /** 0 lets the system choose. */
  readonly port: number;
  /** Times notices. */
  readonly clock: Clock;
}

interface Notice {
  readonly engineId: string | null;
  readonly key: string;
  readonly notice: KvNotice;
}

/** See the head of the file. */
export class HttpCarrier implements KvCarrier {
  readonly host: string;
  readonly port: number;
  readonly #server: Server;
  readonly #pages: KvPages | null;
  readonly #clock: Clock;
  readonly #closed = new AbortController();

  private constructor(server: Server, { host, pages, clock }: HttpCarrierOptions) {
    this.#server = server;
    this.#clock = clock;
    this.host = host;
    this.port = (server.address() as AddressInfo).port;
    this.#pages = pages;
  }

  /** Opens the side channel. Rejects with the reason when it cannot listen. */
  static async open(options: HttpCarrierOptions): Promise<HttpCarrier> {
    const { source, pages, host, port } = options;
    const server = createServer((incoming, outgoing) => {
      void serve(incoming, outgoing, source, pages).catch(() => outgoing.destroy());
    });
    server.keepAliveTimeout = 1;
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject).listen(port, host, resolve);
    });
    return new HttpCarrier(server, options);
  }

  async pull(peer: KvPeer, ask: KvAsk, into: readonly number[], signal: AbortSignal): Promise<void> {
    const both = AbortSignal.any([signal, this.#closed.signal]);
    try {
      const answer = await post(peer, '/pull', ask, both);
      if (answer.statusCode !== 200) throw new HandoverError(await errorOf(answer));
      await fill(answer, into, this.#pages);
    } catch (error) {
      both.throwIfAborted();
      throw error instanceof HandoverError ? error : new HandoverError((error as Error).message);
    }
  }

  notify(peer: KvPeer, key: string, notice: KvNotice): void {
    const late = new AbortController();
    const timer = this.#clock.after(NOTIFY_DEADLINE_MS, () => late.abort());
    const signal = AbortSignal.any([late.signal, this.#closed.signal]);
    const said: Notice = { engineId: peer.engineId, key, notice };
    // A peer that is gone needs no notice; one that missed it has its lease.
    void post(peer, '/notify', said, signal).then(
      answer => {
        timer.cancel();
        answer.on('error', () => {}).resume();
      },
      () => timer.cancel(),
    );
  }

  async close(): Promise<void> {
    this.#closed.abort(new HandoverError('the engine closes'));
    const closed = new Promise<void>(resolve => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }
}

function post(peer: KvPeer, path: string, body: object, signal: AbortSignal): Promise<IncomingMessage> {
  const { host, port } = peer;
  return new Promise((resolve, reject) => {
    const call = request({ host, port, path, method: 'POST', agent: false, signal }, resolve);
    call.on('error', reject).end(JSON.stringify(body));
  });
}

async function errorOf(answer: IncomingMessage): Promise<string> {
  const text = String(await bytesOf(answer, ERROR_BYTES_MAX));
  try {
    return String((JSON.parse(text) as { error: unknown }).error);
  } catch {
    return `the peer answered ${answer.statusCode}`;
  }
}

async function bytesOf(stream: IncomingMessage, bytesMax: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > bytesMax) throw new HandoverError(`a message of the side channel has over ${bytesMax} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** Writes the body into the pages, block after block. */
async function fill(answer: IncomingMessage, into: readonly number[], pages: KvPages | null): Promise<void> {
  const blockBytes = pages?.blockBytes ?? 0;
  const wanted = into.length * blockBytes;
  let at = 0;
  for await (const chunk of answer as AsyncIterable<Buffer>) {
    if (at + chunk.length > wanted) throw new HandoverError(`the peer sent over ${wanted} bytes`);
    for (let from = 0; from < chunk.length; ) {
      const offset = at % blockBytes;
      const piece = chunk.subarray(from, from + blockBytes - offset);
      pages!.bytesOf(into[Math.floor(at / blockBytes)]!).set(piece, offset);
      at += piece.length;
      from += piece.length;
    }
  }
  if (at < wanted) throw new HandoverError(`the peer sent ${at} of ${wanted} bytes`);
}

async function serve(
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  source: KvSource,
  pages: KvPages | null,
): Promise<void> {
  const { method, url } = incoming;
  if (method === 'GET' && url === '/health') outgoing.end('OK');
  else if (method === 'GET' && url === '/query') {
    outgoing.end(JSON.stringify({ 0: { engine_id: source.engineId } }));
  } else if (method === 'POST' && url === '/notify') {
    const said = await readJson<Notice>(incoming);
    outgoing.writeHead(source.notice(said.engineId, said.key, said.notice) ? 204 : 404).end();
  } else if (method === 'POST' && url === '/pull') await servePull(incoming, outgoing, source, pages);
  else outgoing.writeHead(404).end();
}

async function readJson<Value>(incoming: IncomingMessage): Promise<Value> {
  return JSON.parse(String(await bytesOf(incoming, ASK_BYTES_MAX))) as Value;
}

async function servePull(
  incoming: IncomingMessage,
  outgoing: ServerResponse,
  source: KvSource,
  pages: KvPages | null,
): Promise<void> {
  const gone = new AbortController();
  outgoing.on('close', () => gone.abort(new HandoverError('the puller went away')));
  let read: KvRead;
  try {
    read = await source.read(await readJson<KvAsk>(incoming), gone.signal);
  } catch (error) {
    outgoing.writeHead(409).end(JSON.stringify({ error: (error as Error).message }));
    return;
  }
  try {
    await send(outgoing, read, pages, gone.signal);
  } finally {
    read.end();
  }
}

/** Sends the pages of a read, and waits for the puller to have taken them or gone. */
async function send(
  outgoing: ServerResponse,
  read: KvRead,
  pages: KvPages | null,
  gone: AbortSignal,
): Promise<void> {
  const whenGone = new Promise<void>(resolve => {
    if (gone.aborted) resolve();
    else gone.addEventListener('abort', () => resolve(), { once: true });
  });
  outgoing.writeHead(200, { 'content-length': read.blocks.length * (pages?.blockBytes ?? 0) });
  outgoing.flushHeaders();
  for (let at = 0; at < Math.min(read.blocks.length, read.stallAfter) && pages !== null; at++) {
    // A copy: the socket keeps it for longer than the pin may last.
    const isTaken = outgoing.write(Buffer.from(pages.bytesOf(read.blocks[at]!)));
    if (!isTaken) await Promise.race([new Promise(resolve => outgoing.once('drain', resolve)), whenGone]);
    if (gone.aborted) return;
  }
  if (read.stallAfter >= read.blocks.length) outgoing.end();
  await whenGone;
}
