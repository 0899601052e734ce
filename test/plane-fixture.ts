/**
 * A whole plane in the test's process, over mock engines or scripted fake ones, with a clock that stands still, clients
 * that tell what they got, and the check that nothing was left behind. Used by the fault, abuse and end-to-end tests.
 */
import type { Test } from 'tap';
import { loadConfig } from '#millrace/config.js';
import type { LimitName } from '#millrace/limits.js';
import type { WorkerRole } from '#millrace/messages/disagg.js';
import { Plane } from '#millrace/plane/plane.js';
import { loadTokenizer, TOKENIZER_NAMES } from '#millrace/preprocess/tokenizers/load.js';
import { POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { type Clock, ManualClock, systemClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import { type MockEngine, type MockEngineOptions, startMockEngine } from '#millrace/simulate/mock-engine.js';
import type { WorkerOptions } from '#millrace/worker-config.js';
import { FakeEngine, type FakeEngineOptions } from './fake-engine.js';

export const SERVERS = ['uws', 'node'] as const;
export type ServerKind = (typeof SERVERS)[number];
export const TOKENIZER = 'chatml-cl100k';
export const MOCK_MODEL = 'mock-model';
export const FAKE_MODEL = 'fake-model';
export const CHAT = '/v1/chat/completions';
export const COMPLETIONS = '/v1/completions';

const WAIT_DEADLINE_MS = 15_000;
const POLL_MS = 1;

/** Resolves when the condition holds, which nothing tells of as an event; throws after a deadline. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const endMs = performance.now() + WAIT_DEADLINE_MS;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`waited ${WAIT_DEADLINE_MS} ms until ${what}`);
    await new Promise(resolve => setTimeout(resolve, POLL_MS));
  }
}

/** What a client got. `frames`: the JSON of each `data:` line before the end marker. */
export interface Reply {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  // biome-ignore lint/suspicious/noExplicitAny: bodies are read as the JSON of another program
  readonly frames: any[];
  /** `[DONE]` came. */
  readonly done: boolean;
  /** The connection broke before the response was complete. */
  readonly broken: boolean;
}

// biome-ignore lint/suspicious/noExplicitAny: bodies are read as the JSON of another program
export function jsonOf(reply: Reply): any {
  return JSON.parse(reply.text);
}

/** The text of choice `index` of a stream. */
export function streamedText(reply: Reply, index = 0): string {
  return reply.frames
    .flatMap(frame => frame.choices ?? [])
    .filter(choice => choice.index === index)
    .map(choice => choice.text ?? choice.delta?.content ?? '')
    .join('');
}

function framesOf(text: string): Pick<Reply, 'frames' | 'done'> {
  const lines = text
    .split('\n')
    .filter(line => line.startsWith('data: '))
    .map(line => line.slice(6));
  const end = lines.indexOf('[DONE]');
  const isJson = (line: string): boolean => line.startsWith('{') && line.endsWith('}');
  return {
    frames: (end < 0 ? lines : lines.slice(0, end)).filter(isJson).map(line => JSON.parse(line)),
    done: end >= 0,
  };
}

/** A response under way, read as far as the test wants. */
export class OpenReply {
  readonly status: number;
  readonly headers: Headers;
  text = '';
  ended = false;
  broken = false;
  readonly #abort: AbortController;
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #decoder = new TextDecoder();

  constructor(response: Response, abort: AbortController) {
    this.status = response.status;
    this.headers = response.headers;
    this.#abort = abort;
    this.#reader = response.body!.getReader();
  }

  /** Reads until the text so far satisfies the condition, or the response has ended. */
  async readUntil(condition: (text: string) => boolean): Promise<this> {
    while (!this.ended && !condition(this.text)) {
      try {
        const { value, done } = await this.#reader.read();
        this.ended = done;
        if (value !== undefined) this.text += this.#decoder.decode(value, { stream: true });
      } catch {
        this.ended = true;
        this.broken = true;
      }
    }
    return this;
  }

  async rest(): Promise<Reply> {
    await this.readUntil(() => false);
    const { status, headers, text, broken } = this;
    return { status, headers, text, broken, ...framesOf(text) };
  }

  /** Closes the connection. */
  leave(): void {
    this.#abort.abort();
    this.ended = true;
  }
}

const nonZero = (counts: readonly [string, number][]): string[] =>
  counts.filter(([, count]) => count !== 0).map(([what, count]) => `${what}: ${count}`);

/** What the requests of a plane have not given back; empty when it is idle. */
export function planeLeftovers(plane: Plane): string[] {
  const { socket, loadTable } = plane;
  const found: [string, number][] = [
    ['requests in flight', socket.requestsInFlight],
    ['retained bytes', socket.retainedBytes],
    ['parked asks', socket.parkedAsks],
    ['hedged requests', socket.hedges.open],
    ['reservations', socket.ledger.held()],
  ];
  for (let slot = 0; slot < plane.workers.length; slot++) {
    const load = loadTable.snapshot(slot);
    if (load === null) continue;
    found.push([`requests of slot ${slot}`, load.requests]);
    found.push([`prefill tokens of slot ${slot}`, load.activePrefillTokens]);
    found.push([`decode blocks of slot ${slot}`, load.decodeBlocks]);
  }
  return nonZero(found);
}

/** Nobody can be asked for the port of Mooncake's bootstrap server, even where workers are asked. */
const sideChannelOf = (port: number, isAsked: boolean, connector: string) => ({
  ...(isAsked && connector !== 'mooncake' ? {} : { bootstrap: `127.0.0.1:${port}` }),
  ...(isAsked ? {} : { kvInfoEndpoint: `http://127.0.0.1:${port}` }),
});

export interface FixtureOptions {
  readonly server?: ServerKind;
  readonly mocks?: readonly MockEngineOptions[];
  readonly fakes?: readonly FakeEngineOptions[];
  /** Addresses of further workers, which the fixture does not start. */
  readonly workers?: readonly WorkerOptions[];
  /** Null, the default: relay mode. */
  readonly tokenizer?: string | null;
  /** Folder of the workers' model, instead of a tokenizer. */
  readonly modelPath?: string;
  readonly limits?: Partial<Record<LimitName, number>>;
  readonly poolThreads?: number;
  /** Where workers link in; without it nowhere. */
  readonly linkListen?: string;
  readonly adminToken?: string;
  /** Mocks are asked where they publish events and hand KV over; else they are configured with it. */
  readonly asked?: boolean;
  /** Modules with adapters of further engines. */
  readonly extensions?: readonly string[];
  /** Default: round-robin. */
  readonly policy?: string;
  /** Roles of the mocks and then of the fakes; those left out are both. */
  readonly roles?: readonly WorkerRole[];
  /** `models` of the configuration. */
  readonly models?: unknown;
  /** 'real' for tests in which many things happen at once; else the clock moves only by `tick`. */
  readonly clock?: 'manual' | 'real';
}

export class PlaneFixture {
  readonly plane: Plane;
  readonly mocks: readonly MockEngine[];
  readonly fakes: readonly FakeEngine[];
  readonly port: number;
  readonly #clock: Clock;
  /** Lines that the plane logged. */
  readonly log: readonly string[];

  private constructor(
    plane: Plane,
    port: number,
    clock: Clock,
    engines: { mocks: readonly MockEngine[]; fakes: readonly FakeEngine[] },
    log: readonly string[],
  ) {
    this.plane = plane;
    this.port = port;
    this.#clock = clock;
    this.mocks = engines.mocks;
    this.fakes = engines.fakes;
    this.log = log;
  }

  static async start(options: FixtureOptions): Promise<PlaneFixture> {
    const { server = 'node', tokenizer = null, poolThreads = 1, limits = {} } = options;
    const { policy = 'round-robin' } = options;
    const shared = options.mocks === undefined ? undefined : await loadTokenizer(TOKENIZER);
    const mocks = await Promise.all(
      (options.mocks ?? []).map(mock =>
        startMockEngine({
          speed: 'unlimited',
          ...(shared === undefined ? {} : { tokenizer: shared }),
          ...mock,
        }),
      ),
    );
    const fakes = await Promise.all((options.fakes ?? []).map(fake => FakeEngine.start(fake)));
    const { roles = [], asked: isAsked = false } = options;
    const workers = [
      ...mocks.map(({ url, events, connector }, at) => ({
        url,
        ...(isAsked ? {} : { kvEvents: events?.publish, kvEventsReplay: events?.replay }),
        role: roles[at],
        ...(connector === null
          ? {}
          : sideChannelOf(
              connector.options.carrier.port,
              isAsked,
              options.mocks?.[at]?.disagg?.connector ?? '',
            )),
      })),
      ...fakes.map((fake, at) => ({ url: fake.url, role: roles[mocks.length + at] })),
      ...(options.workers ?? []),
    ];
    const config = loadConfig(
      { policies: POLICY_NAMES, tokenizers: TOKENIZER_NAMES },
      {
        options: {
          workers,
          tokenizer,
          modelPath: options.modelPath,
          poolThreads,
          linkListen: options.linkListen,
          httpServer: server,
          policy,
          models: options.models,
          extensions: options.extensions,
          adminToken: options.adminToken,
          // A canary would be one request more than a test has sent.
          limits: { canaryAfterMs: 0, ...limits },
        },
      },
    );
    const clock = options.clock === 'real' ? systemClock : new ManualClock();
    const log: string[] = [];
    const logger = createLogger({ level: 'debug', format: 'text', write: line => log.push(line) });
    const plane = await Plane.start({ config, clock, logger, seed: 1 });
    const { port } = await plane.listen('127.0.0.1', 0);
    const fixture = new PlaneFixture(plane, port, clock, { mocks, fakes }, log);
    await until(
      () => plane.workers.filter(worker => worker.state === 'ready').length >= mocks.length + fakes.length,
      'the workers are ready',
    );
    return fixture;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Moves the manual clock. */
  tick(ms: number): void {
    if (this.#clock instanceof ManualClock) this.#clock.advance(ms);
  }

  /** Sends a request and resolves when the response has begun. */
  async open(path: string, body: unknown, headers: Record<string, string> = {}): Promise<OpenReply> {
    const abort = new AbortController();
    const response = await fetch(this.url + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: typeof body === 'string' ? body : JSON.stringify(body),
      signal: abort.signal,
    });
    return new OpenReply(response, abort);
  }

  /** Sends a request and reads the whole response. */
  async post(path: string, body: unknown, headers: Record<string, string> = {}): Promise<Reply> {
    return (await this.open(path, body, headers)).rest();
  }

  async get(path: string, method = 'GET', init: RequestInit = {}): Promise<Reply> {
    const response = await fetch(this.url + path, { ...init, method });
    const text = await response.text();
    return {
      status: response.status,
      headers: response.headers,
      text,
      frames: [],
      done: false,
      broken: false,
    };
  }

  /** A value of `/metrics`; the series is named as in the text. 0 when there is none. */
  async metric(series: string): Promise<number> {
    const { text } = await this.get('/metrics');
    const line = text.split('\n').find(one => one.startsWith(`${series} `));
    return line === undefined ? 0 : Number(line.slice(series.length + 1));
  }

  /** What is not given back; empty when the plane is idle. */
  leftovers(): string[] {
    const { plane, mocks } = this;
    const found: [string, number][] = [];
    mocks.forEach((mock, at) => {
      found.push([`running on mock ${at}`, mock.counters.running]);
      found.push([`sequences of mock ${at}`, mock.core.running + mock.core.waiting]);
    });
    return [...planeLeftovers(plane), ...nonZero(found)];
  }

  /** Passes when everything that requests held has been given back. */
  async expectIdle(t: Test): Promise<void> {
    try {
      await until(() => {
        // The sweep frees the reservations of plans that were never used.
        this.tick(100);
        return this.leftovers().length === 0;
      }, 'the plane is idle');
    } catch {
      // What is left says more than that time is up.
    }
    t.same(this.leftovers(), [], 'nothing is left behind');
  }

  /** Runs a part of a test on this plane, then checks that it left nothing behind. */
  async step(t: Test, name: string, body: (t: Test) => Promise<void>): Promise<void> {
    await t.test(name, async t => {
      await body(t as Test);
      await this.expectIdle(t as Test);
    });
  }

  async close(): Promise<void> {
    await this.plane.close(0);
    await Promise.all([...this.mocks, ...this.fakes].map(engine => engine.close()));
  }
}

/** Starts a fixture that is closed with the test. */
export async function startPlane(t: Test, options: FixtureOptions): Promise<PlaneFixture> {
  const fixture = await PlaneFixture.start(options);
  t.teardown(() => fixture.close());
  return fixture;
}

/** The error of a response: status, code and param. */
export function errorOf(reply: Reply): {
  status: number;
  code: string;
  param: string | null;
  message: string;
} {
  const { error } = jsonOf(reply);
  return { status: reply.status, code: error.code, param: error.param, message: error.message };
}
