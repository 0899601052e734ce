/**
 * A fake inference engine on a raw socket: it answers the probes of the plane like a vLLM server, and hands each
 * generation request to a script that writes its answer byte by byte. Runs in the test's process; the test closes it.
 */
import { once } from 'node:events';
import net from 'node:net';

const CRLF = '\r\n';
const STREAM_HEAD = `HTTP/1.1 200 OK${CRLF}content-type: text/event-stream${CRLF}transfer-encoding: chunked${CRLF}${CRLF}`;

/** One generation request as the engine got it, and the ways to answer it. */
export class FakeCall {
  readonly socket: net.Socket;
  /** Request line and headers. */
  readonly head: string;
  readonly body: string;

  constructor(socket: net.Socket, head: string, body: string) {
    this.socket = socket;
    this.head = head;
    this.body = body;
  }

  /** The connection has been closed. */
  get closed(): boolean {
    return this.socket.closed;
  }

  // biome-ignore lint/suspicious/noExplicitAny: the request is read as the JSON of another program
  get json(): any {
    return JSON.parse(this.body);
  }

  get path(): string {
    return this.head.split(' ')[1]!;
  }

  /** A whole answer. */
  respond(status: number, contentType: string, body: string, extra = ''): void {
    const length = `content-length: ${Buffer.byteLength(body)}${CRLF}`;
    this.raw(`HTTP/1.1 ${status} X${CRLF}content-type: ${contentType}${CRLF}${extra}${length}${CRLF}${body}`);
  }

  /** Begins an event stream. */
  stream(): this {
    this.raw(STREAM_HEAD);
    return this;
  }

  /** Bytes of the event stream, as one chunk. */
  send(text: string): this {
    this.raw(`${Buffer.byteLength(text).toString(16)}${CRLF}${text}${CRLF}`);
    return this;
  }

  /** Ends the event stream as HTTP wants it. */
  end(): void {
    this.raw(`0${CRLF}${CRLF}`);
  }

  /** Writes bytes as they are; false when the kernel's buffer is full. */
  raw(text: string): boolean {
    return this.socket.write(text);
  }
}

/** A frame with text and ids of one choice, in the form of vLLM's completions route. */
export function textFrame(text: string, ids: readonly number[] = [], finish: string | null = null): string {
  const choice = { index: 0, text, logprobs: null, finish_reason: finish, token_ids: ids };
  return `data: ${JSON.stringify({ id: 'cmpl-1', object: 'text_completion', created: 1, model: 'fake-model', choices: [choice] })}\n\n`;
}

/** The frame with the usage and no choice. */
export function usageFrame(promptTokens: number, completionTokens: number): string {
  const usage = {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
  };
  return `data: ${JSON.stringify({ id: 'cmpl-1', object: 'text_completion', created: 1, model: 'fake-model', choices: [], usage })}\n\n`;
}

/** The frame that ends a stream. */
export const DONE = 'data: [DONE]\n\n';

export interface FakeEngineOptions {
  readonly model?: string;
  /** Null: the engine does not say. */
  readonly contextLength?: number | null;
  /** vLLM release that it plays; default 0.11.0, and before 0.10.2 it is not asked for token ids. */
  readonly version?: string;
  /** Called for each generation request; may be changed at any time. */
  readonly script?: (call: FakeCall) => void;
  /** Bodies of further routes, by path. */
  readonly pages?: Readonly<Record<string, string>>;
  /** 0, the default, lets the system choose. */
  readonly port?: number;
}

/** A running fake engine. */
export class FakeEngine {
  readonly calls: FakeCall[] = [];
  /** Status of its health route. */
  health = 200;
  script: (call: FakeCall) => void;
  readonly #server: net.Server;
  readonly #sockets = new Set<net.Socket>();
  readonly #models: string;
  readonly #version: string;
  readonly #pages: Readonly<Record<string, string>>;

  constructor(options: FakeEngineOptions) {
    this.script = options.script ?? (call => call.socket.destroy());
    const { model = 'fake-model', contextLength = 4096 } = options;
    const length = contextLength === null ? {} : { max_model_len: contextLength };
    this.#models = JSON.stringify({
      object: 'list',
      data: [{ id: model, object: 'model', owned_by: 'vllm', ...length }],
    });
    this.#pages = options.pages ?? {};
    this.#version = JSON.stringify({ version: options.version ?? '0.11.0' });
    this.#server = net.createServer(socket => this.#serve(socket));
  }

  static async start(options: FakeEngineOptions = {}): Promise<FakeEngine> {
    const engine = new FakeEngine(options);
    engine.#server.listen(options.port ?? 0, '127.0.0.1');
    await once(engine.#server, 'listening');
    return engine;
  }

  get port(): number {
    return (this.#server.address() as net.AddressInfo).port;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise(resolve => this.#server.close(resolve));
  }

  #serve(socket: net.Socket): void {
    this.#sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => this.#sockets.delete(socket));
    let received = Buffer.alloc(0);
    socket.on('data', bytes => {
      received = Buffer.concat([received, bytes]);
      for (;;) {
        const headEnd = received.indexOf(CRLF + CRLF);
        if (headEnd < 0) return;
        const head = received.subarray(0, headEnd).toString('latin1');
        const length = Number(/content-length: *(\d+)/i.exec(head)?.[1] ?? 0);
        const end = headEnd + 4 + length;
        if (received.length < end) return;
        const body = received.subarray(headEnd + 4, end).toString('utf8');
        received = received.subarray(end);
        this.#answer(new FakeCall(socket, head, body));
      }
    });
  }

  #answer(call: FakeCall): void {
    const { path } = call;
    if (path === '/health') call.respond(this.health, 'text/plain', '');
    else if (path === '/v1/models') call.respond(200, 'application/json', this.#models);
    else if (path === '/version') call.respond(200, 'application/json', this.#version);
    else if (path === '/metrics') call.respond(200, 'text/plain', '');
    else if (path in this.#pages) call.respond(200, 'application/json', this.#pages[path]!);
    else if (path === '/tokenize' || call.head.startsWith('GET '))
      call.respond(404, 'application/json', '{"detail":"Not Found"}');
    else {
      this.calls.push(call);
      this.script(call);
    }
  }
}
