/**
 * The entry of the ingest thread: makes its unit and lets the core call it. It ends by itself once it has been stopped. An
 * exception that no caller took does not end it: the sockets are closed, the core is told, and the thread waits for its
 * `stop`.
 */
import { strict as assert } from 'node:assert';
import { parentPort, workerData } from 'node:worker_threads';
import { loadAddon } from '../runtime/addon.js';
import { systemClock } from '../runtime/clock.js';
import { FaultGuard } from '../runtime/fault-guard.js';
import { loadIndexTools } from './index-sink.js';
import type { IngestCore, IngestSide, IngestTask } from './ingest-side.js';
import { IngestUnit } from './ingest-unit.js';
import { ThreadCalls } from './thread-calls.js';

const task = workerData as IngestTask;
const port = parentPort;
assert(port !== null, 'this file is the entry of a thread');

const guard = new FaultGuard(error => {
  core.tell('fault', error instanceof Error ? (error.stack ?? error.message) : String(error));
  void unit.close().catch(() => {});
});
const clock = guard.clock(systemClock);

class ThreadUnit extends IngestUnit {
  override async stop(): Promise<void> {
    await super.stop();
    // The port is the last that keeps this thread alive: it ends once its answer has gone.
    port!.unref();
  }
}

const unit = new ThreadUnit(task, {
  clock,
  guard,
  tools: task.indexMemory === null ? null : await loadIndexTools(loadAddon()),
  core: {
    learnBlockSize: (slot, generation, blockSize) => core.tell('learnBlockSize', slot, generation, blockSize),
    log: (level, message, fields) => core.tell('log', level, message, fields),
  },
});
const core: ThreadCalls<IngestCore> = new ThreadCalls(port, unit satisfies IngestSide, clock);
process.on('uncaughtException', error => guard.report(error));
