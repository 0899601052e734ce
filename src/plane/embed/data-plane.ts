/**
 * The embedded plane: what `createDataPlane` gives a host. It joins the plane with the host's servers (handlers) and the
 * host's own calls (`generate`, `pick`). The host's thread is the socket thread; nothing of the host process is touched:
 * no environment, signals, exit, globals, and a fault of ours ends the plane and not the host.
 */
import { type Config, loadConfig, type ModelConfig } from '../../config.js';
import { ConfigError, InvalidRequestError } from '../../errors.js';
import { exchangeFromFetch } from '../../frontend/http/fetch.js';
import type { Limits } from '../../limits.js';
import type { Delta } from '../../messages/delta.js';
import { TOKENIZER_NAMES } from '../../preprocess/tokenizers/load.js';
import { POLICY_NAMES } from '../../router/policies/policies.js';
import { type Clock, systemClock } from '../../runtime/clock.js';
import { createLogger, type Logger } from '../../runtime/logger.js';
import { type MockThread, MockWorker, startMockThread } from '../../simulate/mock-worker.js';
import type { WorkerConfig, WorkerOptions } from '../../worker-config.js';
import { DECISIONS_KEPT, type Decision } from '../decision-log.js';
import { GeneratePort } from '../generate-port.js';
import type { PickedWorker } from '../pick-request.js';
import { Plane } from '../plane.js';
import type { Health } from '../routes.js';
import { encodeGenerate, encodePick, type GenerateRequest, type PickOptions } from './generate-request.js';
import {
  createFastifyPlugin,
  createNodeHandler,
  type FastifyPlugin,
  type NodeHandler,
} from './node-handler.js';

/** How long createDataPlane waits for the workers' first answers; one that is late joins later. */
const FIRST_PROBE_MS = 3000;
const PICK_EXPIRY_MS_MIN = 100;
/** Tokenizer of mock workers. */
const MOCK_TOKENIZER = 'chatml-cl100k';
/** Settings of `millrace serve` that mean nothing here. */
const SERVE_ONLY = ['mockWorkers', 'mockSpeed'];

/** What is set for one model; what is left out is as the plane's own options say. */
export interface ModelOptions extends Partial<Omit<ModelConfig, 'workers'>> {
  readonly workers?: readonly WorkerOptions[];
}

/** Configuration of an embedded plane: the keys of the configuration file, and what only a host can give. */
export interface DataPlaneOptions
  extends Partial<Omit<Config, 'workers' | 'models' | 'limits' | 'mockWorkers' | 'mockSpeed'>> {
  /** Engine servers (`http://host:port`, or an object that says more of one), and `mockWorker()`s. */
  readonly workers?: readonly (WorkerOptions | MockWorker)[];
  readonly models?: Readonly<Record<string, ModelOptions>>;
  readonly limits?: Partial<Limits>;
  /** Takes the log lines; default: standard error from `warn` on. */
  readonly logger?: Logger;
  /** Default: the system clock. */
  readonly clock?: Clock;
}

/** A running data plane inside a host process. */
export class DataPlane {
  readonly #plane: Plane;
  readonly #config: Config;
  readonly #clock: Clock;
  readonly #mocks: readonly MockThread[];
  #closing: Promise<void> | null = null;

  /** Made by `createDataPlane`. */
  constructor(plane: Plane, config: Config, clock: Clock, mocks: readonly MockThread[]) {
    this.#plane = plane;
    this.#config = config;
    this.#clock = clock;
    this.#mocks = mocks;
    this.fastify = createFastifyPlugin(exchange => plane.handle(exchange, true), clock);
  }

  /** Plugin for fastify: `app.register(plane.fastify, { prefix: '/llm' })`. */
  readonly fastify: FastifyPlugin;

  /** Handler for node:http (`createServer(plane.nodeHandler())`) and express (`app.use(plane.nodeHandler())`). */
  nodeHandler(): NodeHandler {
    return createNodeHandler(exchange => this.#plane.handle(exchange, true), this.#clock);
  }

  /**
   * Handler in the style of fetch, for Hono, Next.js and the like. `prefix`: what stands before /v1 in the host's
   * URLs. The promise never rejects.
   */
  fetchHandler({ prefix = '' }: { readonly prefix?: string } = {}): (request: Request) => Promise<Response> {
    return request => {
      const exchange = exchangeFromFetch(request, prefix, this.#clock);
      this.#plane.handle(exchange, true);
      return exchange.response;
    };
  }

  /**
   * Opens a server of its own, with /health, /live and /metrics besides the API. Rejects with ConfigError when the address
   * is taken. Port 0 lets the system choose.
   */
  listen({ host = this.#config.host, port = this.#config.port } = {}): Promise<{ readonly port: number }> {
    return this.#plane.listen(host, port);
  }

  /**
   * Generates in this process, without HTTP. Begins with the first `next()`; `break`, `return()` and the signal stop the
   * engine. A reader that takes nothing while the buffer is full is cut off after the limit slowClientDeadlineMs. Throws
   * InvalidRequestError at once for a field that does not exist; the iterator throws MillraceErrors for all else.
   */
  generate(request: GenerateRequest): AsyncIterableIterator<Delta, undefined, undefined> {
    const encoded = encodeGenerate(request);
    return new GeneratePort(encoded, request.signal ?? null, this.#plane.guard, port =>
      this.#plane.socket.accept(encoded.api, port),
    );
  }

  /**
   * Chooses a worker and reserves its load for a request that the caller sends itself. Rejects with a MillraceError, as
   * a request would fail before it is sent.
   */
  async pick(request: PickOptions): Promise<PickedWorker> {
    const { pickExpiryMs, totalDeadlineMs } = this.#config.limits;
    const { expiresInMs = pickExpiryMs } = request;
    if (
      !Number.isInteger(expiresInMs) ||
      !(expiresInMs >= PICK_EXPIRY_MS_MIN && expiresInMs <= totalDeadlineMs)
    ) {
      throw new InvalidRequestError(
        'MILLRACE_INVALID_REQUEST',
        `expiresInMs is ${expiresInMs}; allowed: ${PICK_EXPIRY_MS_MIN} to ${totalDeadlineMs} (totalDeadlineMs)`,
        { param: 'expiresInMs' },
      );
    }
    return this.#plane.socket.pick(encodePick(request), expiresInMs);
  }

  /** What /health says. */
  health(): Health {
    return this.#plane.health();
  }

  /** What /metrics says: Prometheus' text format, version 0.0.4. */
  metrics(): Promise<string> {
    return this.#plane.metrics();
  }

  /** What /debug/decisions says: the newest decisions, newest first; `limit` is from 1 to 256. */
  decisions({ limit = DECISIONS_KEPT } = {}): Promise<readonly Decision[]> {
    if (Number.isInteger(limit) && limit >= 1 && limit <= DECISIONS_KEPT) return this.#plane.decisions(limit);
    const message = `limit is ${limit}; allowed: 1 to ${DECISIONS_KEPT}`;
    return Promise.reject(new InvalidRequestError('MILLRACE_INVALID_REQUEST', message, { param: 'limit' }));
  }

  /**
   * Admits nothing more, lets open requests finish until the deadline (default: the limit drainDeadlineMs), then frees
   * threads, connections and memory. Never rejects; a second call waits for the first.
   */
  close({ drainDeadlineMs = this.#config.limits.drainDeadlineMs } = {}): Promise<void> {
    this.#closing ??= this.#plane
      .close(drainDeadlineMs)
      .then(() => closeAll(this.#mocks))
      .then(() => {});
    return this.#closing;
  }
}

/**
 * Starts a data plane in this process and resolves when its workers have answered their first probe, or shortly after. Rejects
 * with ConfigError for a wrong configuration, one without workers among them.
 */
export async function createDataPlane(options: DataPlaneOptions): Promise<DataPlane> {
  const { logger: givenLogger, clock = systemClock, workers = [], ...rest } = options;
  const serveOnly = SERVE_ONLY.find(key => Object.hasOwn(rest, key));
  if (serveOnly !== undefined)
    throw new ConfigError(`${serveOnly} belongs to millrace serve; here it is workers: [mockWorker()]`);
  if (!Array.isArray(workers))
    throw new ConfigError('workers must be a list of http://host:port, objects with a url and mockWorker()');
  const mocks = workers.filter(worker => worker instanceof MockWorker);
  const urls = workers.filter(worker => !(worker instanceof MockWorker));
  const areMocks = mocks.length > 0 && urls.length === 0;
  const config = loadConfig(
    { policies: POLICY_NAMES, tokenizers: TOKENIZER_NAMES },
    {
      options: {
        logLevel: 'warn',
        httpServer: 'node',
        tokenizer: areMocks ? MOCK_TOKENIZER : null,
        ...rest,
        workers: urls,
      },
    },
  );
  const named = workers.length + Object.values(config.models).flatMap(model => model.workers).length;
  if (named === 0)
    throw new ConfigError('no workers: give workers: ["http://host:port"], or [mockWorker()] for a trial');
  const logger = givenLogger ?? createLogger({ level: config.logLevel, format: config.logFormat });
  const threads = await startAll(mocks, clock, logger);
  try {
    const plane = await Plane.start({
      config: Object.freeze({
        ...config,
        workers: [...config.workers, ...threads.map(({ url }) => mockConfig(url))],
      }),
      clock,
      logger,
      seed: clock.wallMs() >>> 0,
      onFault: (error, failed) => failed.fail(error),
    });
    await plane.workersAnswered(FIRST_PROBE_MS);
    return new DataPlane(plane, config, clock, threads);
  } catch (error) {
    await closeAll(threads);
    throw error;
  }
}

/** A mock worker publishes no KV events: what it holds is guessed from what is routed there. */
function mockConfig(url: string): WorkerConfig {
  return Object.freeze({
    url,
    engine: 'auto',
    kvEvents: null,
    kvEventsReplay: null,
    kvEventsTopic: '',
    dpRanks: 1,
  });
}

async function startAll(
  workers: readonly MockWorker[],
  clock: Clock,
  logger: Logger,
): Promise<readonly MockThread[]> {
  const onDeath = (error: Error): void =>
    logger.error('a mock worker has died', { error: error.stack ?? error.message });
  const started = await Promise.allSettled(workers.map(worker => startMockThread(worker, clock, onDeath)));
  const threads = started.flatMap(result => (result.status === 'fulfilled' ? [result.value] : []));
  const failed = started.find(result => result.status === 'rejected');
  if (failed === undefined) return threads;
  await closeAll(threads);
  throw failed.reason;
}

async function closeAll(threads: readonly MockThread[]): Promise<void> {
  await Promise.all(threads.map(thread => thread.close()));
}
