/** What operators ask for (R1), carried out on the core: the other half of admin.ts. */
import { MillraceError } from '../errors.js';
import type { WorkerOptions } from '../worker-config.js';
import type { AdminAnswer, AdminCall } from './admin.js';
import type { Plane } from './plane.js';

/** Carries a call out. A worker that is wrong is an answer. */
export function carryOutAdmin(
  plane: Pick<Plane, 'workerReports' | 'addWorker' | 'removeWorker' | 'retireWorker'>,
  call: AdminCall,
): AdminAnswer {
  if (call.kind === 'list') return { status: 200, value: { workers: plane.workerReports } };
  if (call.kind === 'add') return add(plane, call.worker);
  const url = URL.canParse(call.url) ? new URL(call.url).origin : call.url;
  const isThere = call.drains ? plane.retireWorker(url) : plane.removeWorker(url);
  if (!isThere) return { code: 'MILLRACE_NOT_FOUND', message: `there is no worker at ${url}` };
  return call.drains
    ? { status: 202, value: { url, state: 'draining' } }
    : { status: 200, value: { url, state: 'removed' } };
}

function add(plane: Pick<Plane, 'addWorker'>, worker: unknown): AdminAnswer {
  if (typeof worker !== 'object' || worker === null || Array.isArray(worker))
    return {
      code: 'MILLRACE_INVALID_REQUEST',
      message: 'the body must be an object with the url of a worker',
    };
  try {
    plane.addWorker(worker as WorkerOptions);
    return { status: 201, value: { state: 'probing' } };
  } catch (error) {
    if (!(error instanceof MillraceError)) throw error;
    return { code: 'MILLRACE_INVALID_REQUEST', message: error.message };
  }
}
