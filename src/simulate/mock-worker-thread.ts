/** The thread of one mock worker: runs the engine until it is told to close. */
import { parentPort, workerData } from 'node:worker_threads';
import { type MockEngineOptions, startMockEngine } from './mock-engine.js';

// uWebSockets.js aborts the process when its thread is terminated, so it is not used in this one.
const engine = await startMockEngine({ ...(workerData as MockEngineOptions), serverKind: 'node' });
parentPort!.once('message', () => {
  void engine.close().then(() => parentPort!.close());
});
parentPort!.postMessage(engine.url);
