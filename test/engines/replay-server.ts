/**
 * A server that answers with recorded bytes: a request gets the answer that the real engine gave to the same one, in the
 * chunks in which it came. Requests count as the same by method, path, content type and JSON body; of several answers each is
 * given once, the last one again and again. What was never recorded is kept in `unknown` and gets a 599.
 */
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';

export interface Exchange {
  readonly request: {
    readonly method: string;
    readonly path: string;
    readonly headers?: Readonly<Record<string, string>>;
    readonly body?: unknown;
  };
  readonly response: {
    readonly status: number;
    readonly headers: Readonly<Record<string, string>>;
    readonly chunks: readonly string[];
  };
  /** Whoever asked closed the connection; the answer had not ended. */
  readonly isAborted?: true;
}

/** What a client asked a plane, and what went between that plane and the engine; or a call to the engine itself. */
export interface Scenario {
  readonly name: string;
  readonly client?: {
    readonly path: string;
    readonly body: Record<string, unknown>;
    readonly leaveAfter?: number;
  };
  readonly exchanges: readonly Exchange[];
}

const FOLDER = new URL('../../../test/engines/fixtures/golden/', import.meta.url);

/** The folder of the model that the scenarios of `engine` were recorded with. */
export const modelFolder = (engine: string): string => new URL(`${engine}/model`, FOLDER).pathname;

/** Reads a file of scenarios, such as `vllm-0.32.0`, `chat`. */
export const readScenarios = (engine: string, file: string): Scenario[] =>
  JSON.parse(readFileSync(new URL(`${engine}/${file}.json`, FOLDER), 'utf8'));

const sorted = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .map(([key, entry]) => [key, sorted(entry)] as const)
      .sort(([a], [b]) => (a < b ? -1 : 1)),
  );
};

const keyOf = (method: string, path: string, contentType: string | undefined, body: unknown): string =>
  `${method} ${path} ${contentType ?? ''} ${JSON.stringify(sorted(body)) ?? ''}`;

export class ReplayServer {
  readonly url: string;
  /** Requests that nothing was recorded for. */
  readonly unknown: string[] = [];
  readonly #answers: Map<string, Exchange[]>;
  #closed = 0;
  #onClosed = (): void => {};

  private constructor(url: string, answers: Map<string, Exchange[]>) {
    this.url = url;
    this.#answers = answers;
  }

  static async start(t: Test, scenarios: readonly Scenario[]): Promise<ReplayServer> {
    const answers = new Map<string, Exchange[]>();
    for (const exchange of scenarios.flatMap(({ exchanges }) => exchanges)) {
      const { method, path, headers, body } = exchange.request;
      const key = keyOf(method, path, headers?.['content-type'], body);
      answers.set(key, [...(answers.get(key) ?? []), exchange]);
    }
    const server = createServer((request, response) => void replay.#take(request, response));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    t.teardown(() => {
      server.close();
      server.closeAllConnections();
    });
    const replay = new ReplayServer(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, answers);
    return replay;
  }

  /** Resolves when `count` answers that stay open have been closed by whoever asked. */
  async aborts(count: number): Promise<void> {
    while (this.#closed < count) {
      await new Promise<void>(resolve => {
        this.#onClosed = resolve;
      });
    }
  }

  async #take(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method, url, headers } = request;
    const text = (await request.toArray()).join('');
    const key = keyOf(method!, url!, headers['content-type'], text === '' ? undefined : JSON.parse(text));
    const found = this.#answers.get(key);
    if (found === undefined) {
      this.unknown.push(key);
      response.writeHead(599).end();
      return;
    }
    const exchange = found.length > 1 ? found.shift()! : found[0]!;
    response.on('close', () => {
      if (response.writableFinished) return;
      this.#closed++;
      this.#onClosed();
    });
    response.writeHead(exchange.response.status, exchange.response.headers);
    for (const chunk of exchange.response.chunks) {
      response.write(chunk);
      await new Promise(setImmediate);
    }
    if (exchange.isAborted !== true) response.end();
  }
}
