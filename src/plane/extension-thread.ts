/**
 * The entry of the thread that tries the extensions of a plane before it starts (extension-trial.ts): loads them as pool and
 * socket threads will, says what is wrong with them, and ends.
 */
import { strict as assert } from 'node:assert';
import { parentPort, workerData } from 'node:worker_threads';
import { createAdapters } from '../engines/adapters.js';
import { loadExtensions } from '../engines/extensions.js';
import { systemClock } from '../runtime/clock.js';

assert(parentPort !== null, 'this file is the entry of a thread');
let said = '';
try {
  createAdapters(await loadExtensions(workerData as readonly string[], systemClock));
} catch (error) {
  said = (error as Error).message;
}
parentPort.postMessage(said);
