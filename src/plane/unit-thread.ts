/**
 * The entry of a socket thread of its own (`socketThreads` above 1): makes its unit and lets the core call it. It ends by
 * itself once it has been stopped, and must never be terminated: uWebSockets.js aborts the process on that. An
 * exception that no caller took is told to the core, which ends the process in order.
 */
import { strict as assert } from 'node:assert';
import { parentPort, workerData } from 'node:worker_threads';
import { loadExtensions } from '../engines/extensions.js';
import { systemClock } from '../runtime/clock.js';
import { FaultGuard } from '../runtime/fault-guard.js';
import type { LogFields, Logger } from '../runtime/logger.js';
import { createLaneServer } from './link-access.js';
import type { CoreSide, SocketSide, SocketTask } from './socket-side.js';
import { SocketUnit } from './socket-unit.js';
import { ThreadCalls } from './thread-calls.js';

/** A scrape asks every socket thread. */
const SCRAPE_DEADLINE_MS = 5000;

const task = workerData as SocketTask;
const { drainDeadlineMs, controlDeadlineMs } = task.config.limits;
/** A worker that falls asleep empties first; waking takes several calls. */
const ADMIN_DEADLINE_MS = SCRAPE_DEADLINE_MS + drainDeadlineMs + 6 * controlDeadlineMs;
const port = parentPort;
assert(port !== null, 'this file is the entry of a thread');

const guard = new FaultGuard(error =>
  core.tell('fault', error instanceof Error ? (error.stack ?? error.message) : String(error)),
);
const clock = guard.clock(systemClock);

class ThreadUnit extends SocketUnit {
  override async stop(): Promise<void> {
    await super.stop();
    // The port is the last that keeps this thread alive: it ends once its answer has gone.
    port!.unref();
  }
}

type Level = Parameters<CoreSide['log']>[0];
const log =
  (level: Level) =>
  (message: string, fields?: LogFields): void =>
    core.tell('log', level, message, fields);
// That a worker comes or goes, the core says once.
const logger: Logger = { debug: log('debug'), info: log('debug'), warn: log('warn'), error: log('error') };

const unit: SocketSide = new ThreadUnit(task, {
  clock,
  guard,
  // Messages that come meanwhile wait at the port.
  extensions: await loadExtensions(task.config.extensions, clock),
  core: {
    reportFailure: (slot, generation, failure) => core.tell('reportFailure', slot, generation, failure),
    metricsText: () => core.call('metricsText', SCRAPE_DEADLINE_MS),
    decisions: count => core.call('decisions', SCRAPE_DEADLINE_MS, count),
    admin: call => core.call('admin', ADMIN_DEADLINE_MS, call),
  },
  readWorkerLoads: () => [],
  readWorkers: null,
  readIngest: null,
  links: createLaneServer(task.index, task.config, { clock, logger }),
});
const core: ThreadCalls<CoreSide> = new ThreadCalls(port, unit, clock);
process.on('uncaughtException', error => guard.report(error));
