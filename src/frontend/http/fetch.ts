/**
 * HttpExchange over the fetch API (R1, R7): a Request in, a Response out, for hosts such as Hono, Next.js or Deno's
 * style of servers on Node. The response body is a ReadableStream: a reader that stops reading shows as back-pressure, one
 * that cancels as a closed connection. Runs on the host's thread, which is the socket thread.
 */
import { strict as assert } from 'node:assert';
import type { Clock } from '../../runtime/clock.js';
import { BodyCollector } from './body-collector.js';
import type { BodyFault, HeaderList, HttpExchange } from './http-exchange.js';

/** Bytes that wait in the response stream before `write` says to stop. */
const STREAM_BYTES = 65_536;

type Phase = 'open' | 'streaming' | 'done';

class FetchExchange implements HttpExchange {
  readonly method: string;
  readonly path: string;
  readonly query: string;
  /** The answer; never rejects. */
  readonly response: Promise<Response>;
  readonly #request: Request;
  readonly #clock: Clock;
  #resolve!: (response: Response) => void;
  #phase: Phase = 'open';
  #body: BodyCollector | null = null;
  #controller: ReadableStreamDefaultController<Uint8Array> | null = null;
  #aborted: (() => void) | null = null;
  #writable: (() => void) | null = null;
  #blocked = false;

  constructor(request: Request, path: string, query: string, clock: Clock) {
    this.#request = request;
    this.#clock = clock;
    this.method = request.method;
    this.path = path;
    this.query = query;
    this.response = new Promise(resolve => {
      this.#resolve = resolve;
    });
    request.signal.addEventListener('abort', this.#gone, { once: true });
  }

  header(name: string): string | undefined {
    return this.#request.headers.get(name) ?? undefined;
  }

  readBody(
    bytesMax: number,
    deadlineMs: number,
    onBody: (chunks: Uint8Array[], bytes: number) => void,
    onFault: (fault: BodyFault) => void,
  ): void {
    if (this.#phase === 'done') return;
    assert(this.#body === null, 'readBody must be called once');
    const body = new BodyCollector({ bytesMax, deadlineMs, clock: this.#clock, onBody, onFault });
    this.#body = body;
    const declared = this.header('content-length');
    if (this.#request.bodyUsed) body.fail('consumed');
    else if (declared === undefined || body.admits(Number(declared))) void this.#collect(body);
  }

  async #collect(body: BodyCollector): Promise<void> {
    try {
      const reader = this.#request.body?.getReader();
      while (reader !== undefined && body.open) {
        const { done, value } = await reader.read();
        if (done) break;
        body.push(value);
      }
      if (body.open) body.finish();
      else await reader?.cancel();
    } catch {
      body.fail('aborted');
    }
  }

  respond(status: number, headers: HeaderList, body: string | Uint8Array): void {
    if (this.#phase === 'done') return;
    assert(this.#phase === 'open', 'respond after start');
    this.#finish();
    const content = this.method === 'HEAD' ? null : (body as string | Uint8Array<ArrayBuffer>);
    this.#resolve(new Response(content, { status, headers: headers as [string, string][] }));
  }

  start(status: number, headers: HeaderList): void {
    if (this.#phase === 'done') return;
    assert(this.#phase === 'open', 'start twice');
    this.#phase = 'streaming';
    const stream = new ReadableStream<Uint8Array>(
      {
        start: controller => {
          this.#controller = controller;
        },
        pull: () => this.#pulled(),
        cancel: () => this.#gone(),
      },
      new ByteLengthQueuingStrategy({ highWaterMark: STREAM_BYTES }),
    );
    const body = this.method === 'HEAD' ? null : stream;
    this.#resolve(new Response(body, { status, headers: headers as [string, string][] }));
  }

  write(data: string | Uint8Array): boolean {
    if (this.#phase !== 'streaming' || this.method === 'HEAD') return true;
    if (data.length > 0) this.#enqueue(data);
    this.#blocked = this.#controller!.desiredSize! <= 0;
    return !this.#blocked;
  }

  bufferedBytes(): number {
    return this.#phase === 'streaming' && this.#blocked ? STREAM_BYTES - this.#controller!.desiredSize! : 0;
  }

  onWritable(fn: () => void): void {
    this.#writable = fn;
  }

  end(data?: string | Uint8Array): void {
    if (this.#phase === 'done') return;
    assert(this.#phase === 'streaming', 'end before start');
    this.#finish();
    if (data !== undefined && data.length > 0 && this.method !== 'HEAD') this.#enqueue(data);
    this.#controller!.close();
  }

  abort(): void {
    if (this.#phase === 'done') return;
    this.#finish();
    if (this.#controller === null) this.#resolve(new Response(null, { status: 503 }));
    else this.#controller.error(new Error('the answer was cut'));
  }

  onAborted(fn: () => void): void {
    this.#aborted = fn;
  }

  #enqueue(data: string | Uint8Array): void {
    this.#controller!.enqueue(typeof data === 'string' ? Buffer.from(data) : data);
  }

  #pulled(): void {
    if (!this.#blocked || this.#phase !== 'streaming') return;
    this.#blocked = false;
    this.#writable?.();
  }

  #finish(): void {
    this.#phase = 'done';
    this.#body?.cancel();
    this.#request.signal.removeEventListener('abort', this.#gone);
  }

  readonly #gone = (): void => {
    if (this.#phase === 'done') return;
    const wasOpen = this.#phase === 'open';
    const body = this.#body;
    this.#phase = 'done';
    // Nobody reads it, but a host may still wait for it.
    if (wasOpen) this.#resolve(new Response(null, { status: 499 }));
    body?.fail('aborted');
    this.#aborted?.();
  };
}

/**
 * Makes an exchange of a Request; `response` settles when the exchange is answered. `prefix` is taken off the path where
 * the path begins with it.
 */
export function exchangeFromFetch(
  request: Request,
  prefix: string,
  clock: Clock,
): HttpExchange & { readonly response: Promise<Response> } {
  const { pathname, search } = new URL(request.url);
  const path = pathname.startsWith(`${prefix}/`) ? pathname.slice(prefix.length) : pathname;
  return new FetchExchange(request, path, search.slice(1), clock);
}
