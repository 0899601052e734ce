/**
 * Loads the extensions of a plane for the core's own thread (R3–R5), once a thread of their own has shown that the others can:
 * a pool thread that cannot import them would be replaced again and again, and a module may well work on the main thread
 * alone. Runs before anything else of the plane is started.
 */
import { Worker } from 'node:worker_threads';
import type { Config } from '../config.js';
import { checkEngines, createAdapters } from '../engines/adapters.js';
import { type EngineExtension, EXTENSION_LOAD_MS, loadExtensions } from '../engines/extensions.js';
import { ConfigError } from '../errors.js';
import type { Clock } from '../runtime/clock.js';
import { configuredWorkers } from './fleet.js';

/** Over the deadline of each module, which its thread sees to: for one that keeps its thread busy. */
const GRACE_MS = 5000;

/**
 * Rejects with ConfigError that names the module, and the field where one is wrong; or the worker whose engine is none that
 * there is now.
 */
export async function openExtensions(config: Config, clock: Clock): Promise<readonly EngineExtension[]> {
  const modules = config.extensions;
  if (modules.length > 0) await tryInThread(modules, clock);
  const extensions = await loadExtensions(modules, clock);
  checkEngines(createAdapters(extensions), configuredWorkers(config));
  return extensions;
}

function tryInThread(modules: readonly string[], clock: Clock): Promise<void> {
  // As pool and socket threads are made.
  const thread = new Worker(new URL('./extension-thread.js', import.meta.url), {
    workerData: modules,
    execArgv: [],
  });
  const names = modules.join(', ');
  return new Promise((resolve, reject) => {
    const end = (fault: string | null): void => {
      timer.cancel();
      void thread.terminate();
      if (fault === null) resolve();
      else reject(new ConfigError(fault));
    };
    const deadlineMs = modules.length * EXTENSION_LOAD_MS + GRACE_MS;
    const timer = clock.after(deadlineMs, () =>
      end(`extensions: a thread has not loaded ${names} within ${deadlineMs} ms`),
    );
    thread.once('message', (said: string) => end(said === '' ? null : said));
    thread.once('error', error => end(`extensions: a thread that loads ${names} fails: ${error.message}`));
    thread.once('exit', () => end(`extensions: a thread that loads ${names} ends before it has loaded them`));
  });
}
