/**
 * `mockWorker()`: a mock engine as a worker of an embedded plane. The descriptor is inert; the plane that is given it
 * starts the engine in a thread of its own, behind node:http on a loopback port, and closes it by message.
 */
import { Worker } from 'node:worker_threads';
import { ConfigError, MillraceError } from '../errors.js';
import type { Clock } from '../runtime/clock.js';
import { nearestName } from '../runtime/nearest-name.js';
import { ENGINE_SETTING_RANGES, type EngineSettings, resolveEngineSettings } from './engine-settings.js';
import type { FaultRates } from './faults.js';

const START_DEADLINE_MS = 20_000;
const CLOSE_DEADLINE_MS = 2000;

/** Settings of a mock worker; everything has a default. */
export interface MockWorkerOptions extends Partial<EngineSettings> {
  /** Name of the model it serves; default `mock-model`. */
  readonly model?: string;
  /** A tiny transformer with KV in real pages makes the tokens. */
  readonly tiny?: boolean;
  /** Faults per request, as probabilities. */
  readonly faults?: FaultRates;
}

/** A worker to be started; see the head of the file. */
export class MockWorker {
  readonly options: MockWorkerOptions;

  constructor(options: MockWorkerOptions) {
    this.options = Object.freeze({ ...options });
  }
}

/** Describes a mock engine for `workers` of createDataPlane. Throws ConfigError for a setting that does not exist or its range. */
export function mockWorker(options: MockWorkerOptions = {}): MockWorker {
  const valid = [...Object.keys(ENGINE_SETTING_RANGES), 'model', 'tiny', 'faults'];
  for (const key of Object.keys(options)) {
    if (!valid.includes(key)) {
      throw new ConfigError(
        `mockWorker: there is no setting "${key}"; did you mean "${nearestName(key, valid)}"?`,
      );
    }
  }
  resolveEngineSettings(options);
  return new MockWorker(options);
}

/** A mock engine that runs in a thread. */
export interface MockThread {
  readonly url: string;
  /** Ends the engine and its thread. */
  close(): Promise<void>;
}

/** Starts the engine; `onDeath` is told if its thread dies by itself. Rejects with the reason why it does not start. */
export async function startMockThread(
  worker: MockWorker,
  clock: Clock,
  onDeath: (error: Error) => void,
): Promise<MockThread> {
  const thread = new Worker(new URL('./mock-worker-thread.js', import.meta.url), {
    workerData: worker.options,
    name: 'millrace mock worker',
    // The host's loaders and its `--input-type` are not for our files.
    execArgv: [],
  });
  const exited = new Promise<void>(resolve => thread.once('exit', () => resolve()));
  const close = async (): Promise<void> => {
    thread.postMessage('close');
    const timer = clock.after(CLOSE_DEADLINE_MS, () => void thread.terminate());
    await exited;
    timer.cancel();
  };
  const url = await new Promise<string>((resolve, reject) => {
    const fail = (error: Error): void => {
      timer.cancel();
      reject(error);
      onDeath(error);
    };
    const timer = clock.after(START_DEADLINE_MS, () => {
      fail(new MillraceError('MILLRACE_INTERNAL', `a mock worker did not start in ${START_DEADLINE_MS} ms`));
      void thread.terminate();
    });
    thread.on('error', fail);
    thread.once('message', (address: string) => {
      timer.cancel();
      resolve(address);
    });
  });
  return { url, close };
}
