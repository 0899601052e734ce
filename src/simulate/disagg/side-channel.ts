/**
 * HTTP beside an engine's own port, on which engines speak about KV: what routers see as bootstrap server (GET /health,
 * GET /query), notices, and the routes that a carrier adds. One per engine, on its thread.
 *
 *     POST /notify {engineId, key, notice} → 204 | 404      any other route: of the carrier; a refusal is 4xx {"error":"…"}
 */
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Clock } from '../../runtime/clock.js';
import { HandoverError, type KvNotice, type KvPeer, type KvSource } from './kv-carrier.js';

const MESSAGE_BYTES_MAX = 8 * 1024 * 1024;
const ERROR_BYTES_MAX = 4096;
const NOTIFY_DEADLINE_MS = 2000;

/** Answers one request. What it throws breaks the connection. */
export type SideRoute = (incoming: IncomingMessage, outgoing: ServerResponse) => Promise<void>;

/** What a side channel needs. */
export interface SideChannelOptions {
  readonly source: KvSource;
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
export class SideChannel {
  readonly host: string;
  readonly port: number;
  readonly #server: Server;
  readonly #clock: Clock;
  readonly #closed = new AbortController();

  private constructor(server: Server, { host, clock }: SideChannelOptions) {
    this.#server = server;
    this.#clock = clock;
    this.host = host;
    this.port = (server.address() as AddressInfo).port;
  }

  /** Opens it with routes by method and path (`POST /pull`). Rejects with the reason when it cannot listen. */
  static async open(
    options: SideChannelOptions,
    routes: Readonly<Record<string, SideRoute>>,
  ): Promise<SideChannel> {
    const { source, host, port } = options;
    const all: Record<string, SideRoute> = {
      'GET /health': async (_incoming, outgoing) => void outgoing.end('OK'),
      'GET /query': async (_incoming, outgoing) =>
        void outgoing.end(JSON.stringify({ 0: { engine_id: source.engineId } })),
      'POST /notify': async (incoming, outgoing) => {
        const said = await readJson<Notice>(incoming);
        outgoing.writeHead(source.notice(said.engineId, said.key, said.notice) ? 204 : 404).end();
      },
      ...routes,
    };
    const server = createServer((incoming, outgoing) => {
      const route = all[`${incoming.method} ${incoming.url}`];
      if (route === undefined) outgoing.writeHead(404).end();
      else void route(incoming, outgoing).catch(() => outgoing.destroy());
    });
    server.keepAliveTimeout = 1;
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject).listen(port, host, resolve);
    });
    return new SideChannel(server, options);
  }

  /** Fires when the channel closes. */
  get closed(): AbortSignal {
    return this.#closed.signal;
  }

  /** Sends JSON to a peer's route. Rejects when it cannot be reached, or when `signal` fires. */
  post(peer: KvPeer, path: string, body: object, signal: AbortSignal): Promise<IncomingMessage> {
    const { host, port } = peer;
    return new Promise((resolve, reject) => {
      const call = request({ host, port, path, method: 'POST', agent: false, signal }, resolve);
      call.on('error', reject).end(JSON.stringify(body));
    });
  }

  /** As `post`, with a deadline in the place of a signal, that `take` has to keep too. */
  async postWithin<Value>(
    deadlineMs: number,
    peer: KvPeer,
    path: string,
    body: object,
    take: (answer: IncomingMessage) => Promise<Value>,
  ): Promise<Value> {
    const late = new AbortController();
    const timer = this.#clock.after(deadlineMs, () =>
      late.abort(new HandoverError(`${path} was not answered in ${deadlineMs} ms`)),
    );
    const signal = AbortSignal.any([late.signal, this.closed]);
    try {
      return await take(await this.post(peer, path, body, signal));
    } catch (error) {
      signal.throwIfAborted();
      throw error;
    } finally {
      timer.cancel();
    }
  }

  /** As KvCarrier.notify. */
  notify(peer: KvPeer, key: string, notice: KvNotice): void {
    const said: Notice = { engineId: peer.engineId, key, notice };
    // A peer that is gone needs no notice; one that missed it has its lease.
    this.postWithin(NOTIFY_DEADLINE_MS, peer, '/notify', said, async answer => {
      answer.on('error', () => {}).resume();
    }).catch(() => {});
  }

  /** Ends all that is under way. */
  async close(): Promise<void> {
    this.#closed.abort(new HandoverError('the engine closes'));
    const closed = new Promise<void>(resolve => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }
}

/** The reason of a peer's refusal. */
export async function refusalOf(answer: IncomingMessage): Promise<HandoverError> {
  const text = String(await bytesOf(answer, ERROR_BYTES_MAX));
  try {
    return new HandoverError(String((JSON.parse(text) as { error: unknown }).error));
  } catch {
    return new HandoverError(`the peer answered ${answer.statusCode}`);
  }
}

/** The JSON of a message. */
export async function readJson<Value>(message: IncomingMessage): Promise<Value> {
  return JSON.parse(String(await bytesOf(message, MESSAGE_BYTES_MAX))) as Value;
}

/** The values of a message that has one JSON text per line, each as soon as it is there. */
export async function* readJsonLines<Value>(message: IncomingMessage): AsyncGenerator<Value> {
  let text = '';
  for await (const chunk of message.setEncoding('utf8') as AsyncIterable<string>) {
    text += chunk;
    for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
      yield JSON.parse(text.slice(0, end)) as Value;
      text = text.slice(end + 1);
    }
    if (text.length > MESSAGE_BYTES_MAX)
      throw new HandoverError(`a line of the side channel has over ${MESSAGE_BYTES_MAX} characters`);
  }
}

/** Fires when the other side has gone, or has taken the whole answer. */
export function whenGone(outgoing: ServerResponse): AbortSignal {
  const gone = new AbortController();
  outgoing.on('close', () => gone.abort(new HandoverError('the puller went away')));
  return gone.signal;
}

/** Answers with a refusal. */
export function refuse(outgoing: ServerResponse, status: number, error: unknown): void {
  outgoing.writeHead(status).end(JSON.stringify({ error: (error as Error).message }));
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
