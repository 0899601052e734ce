/**
 * The entry of the ingest thread: makes its unit and lets the core call it. It ends by itself once it has been stopped and
 * must never be terminated: ZeroMQ aborts the process on that. For the same reason an exception that no caller took does
 * not end it: the sockets are closed, the core is told, and the thread waits for its `stop`.
 */
import { strict as assert } from 'node:assert';
import { parentPort, workerData } from 'node:worker_threads';
import { loadZeroMq } from '../router/events/zmq-source.js';
import { loadAddon } from '../runtime/addon.js';
import { systemClock } from '../runtime/clock.js';
import { FaultGuard } from '../runtime/fault-guard.js';
import { sharedWords } from '../runtime/shared-memory.js';
import { loadIndexTools } from './index-sink.js';
import { INGEST_CONTROL, type IngestCore, type IngestSide, type IngestTask } from './ingest-side.js';
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
  zeroMq: task.hasEvents ? await loadZeroMq() : { zmq: null, reason: 'no worker publishes KV events' },
  tools: task.indexMemory === null ? null : await loadIndexTools(loadAddon()),
  core: {
    learnBlockSize: (slot, generation, blockSize) => core.tell('learnBlockSize', slot, generation, blockSize),
    log: (level, message, fields) => core.tell('log', level, message, fields),
  },
});
const core: ThreadCalls<IngestCore> = new ThreadCalls(port, unit satisfies IngestSide, clock);
process.on('uncaughtException', error => guard.report(error));

/** The process exits without having closed its plane: the sockets go first. */
async function closeOnExit(): Promise<void> {
  const words = sharedWords(task.controlMemory);
  const wait = Atomics.waitAsync(words, INGEST_CONTROL.leave, 0);
  if (wait.async) await wait.value;
  try {
    await unit.close();
  } finally {
    Atomics.store(words, INGEST_CONTROL.gone, 1);
    Atomics.notify(words, INGEST_CONTROL.gone);
  }
}
void closeOnExit();
