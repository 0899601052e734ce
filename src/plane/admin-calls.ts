/** What operators ask for (R1), carried out on the core: the other half of admin.ts. */
import type { AdapterSource } from '../engines/control-contract.js';
import { MillraceError } from '../errors.js';
import type { WorkerOptions } from '../worker-config.js';
import type { AdminAnswer, AdminCall } from './admin.js';
import type { Plane } from './plane.js';
import type { AdapterResult } from './worker-control.js';

const NAME_CHARACTERS_MAX = 256;
const PATH_CHARACTERS_MAX = 4096;
/** An adapter's name goes into logs, metrics and queries. */
const PLAIN = /^[^\p{Cc}]+$/u;

type Carrier = Pick<
  Plane,
  'workerReports' | 'addWorker' | 'removeWorker' | 'retireWorker' | 'control' | 'workers'
>;

/** Carries a call out. What is wrong with it or its worker is an answer. */
export async function carryOutAdmin(plane: Carrier, call: AdminCall): Promise<AdminAnswer> {
  try {
    return await answerTo(plane, call);
  } catch (error) {
    if (!(error instanceof MillraceError)) throw error;
    const code = error.code === 'MILLRACE_CONFIG' ? 'MILLRACE_INVALID_REQUEST' : error.code;
    return { code, message: error.message };
  }
}

async function answerTo(plane: Carrier, call: AdminCall): Promise<AdminAnswer> {
  const { control } = plane;
  switch (call.kind) {
    case 'list':
      return { status: 200, value: { workers: plane.workerReports } };
    case 'add':
      return add(plane, call.body);
    case 'remove':
      return remove(plane, originOf(call.url), call.drains);
    case 'sleep':
      return { status: 200, value: await control.sleep(originOf(call.url), call.level) };
    case 'wake': {
      const value = await control.wake(originOf(call.url), call.level);
      return { status: value.state === 'ready' ? 200 : 202, value };
    }
    case 'load': {
      const { workers, ...adapter } = readAdapter(call.body, plane.workers.length);
      return told(adapter.name, await control.load(adapter, workers));
    }
    case 'unload': {
      const workers = call.workers === null ? null : [...new Set(call.workers.map(originOf))];
      return told(call.name, await control.unload(call.name, workers));
    }
  }
}

const originOf = (url: string): string => (URL.canParse(url) ? new URL(url).origin : url);

function remove(plane: Carrier, url: string, drains: boolean): AdminAnswer {
  const isThere = drains ? plane.retireWorker(url) : plane.removeWorker(url);
  if (!isThere) return { code: 'MILLRACE_NOT_FOUND', message: `there is no worker at ${url}` };
  return drains
    ? { status: 202, value: { url, state: 'draining' } }
    : { status: 200, value: { url, state: 'removed' } };
}

function add(plane: Carrier, worker: unknown): AdminAnswer {
  if (!isObject(worker)) throw wrong('the body must be an object with the url of a worker');
  plane.addWorker(worker as unknown as WorkerOptions);
  return { status: 201, value: { state: 'probing' } };
}

/** Success and failure of each worker, and of all in the status. */
function told(name: string, workers: readonly AdapterResult[]): AdminAnswer {
  const failed = workers.filter(({ outcome }) => outcome === 'failed').length;
  const status = failed === 0 ? 200 : failed === workers.length ? 502 : 207;
  return { status, value: { name, failed, workers } };
}

function readAdapter(
  body: unknown,
  workersMax: number,
): AdapterSource & { readonly workers: readonly string[] | null } {
  if (!isObject(body)) throw wrong('the body must be an object with the name and the path of an adapter');
  const stranger = Object.keys(body).find(key => !['name', 'path', 'workers'].includes(key));
  if (stranger !== undefined) throw wrong(`unknown field "${stranger}"; allowed: name, path, workers`);
  const name = textOf(body, 'name', NAME_CHARACTERS_MAX);
  const path = textOf(body, 'path', PATH_CHARACTERS_MAX);
  const workers = body.workers ?? null;
  if (workers === null) return { name, path, workers };
  const isList =
    Array.isArray(workers) &&
    workers.length > 0 &&
    workers.length <= workersMax &&
    workers.every(one => typeof one === 'string');
  if (!isList) throw wrong(`workers must be a list of 1 to ${workersMax} worker URLs`);
  return { name, path, workers: [...new Set(workers.map(originOf))] };
}

function textOf(body: Readonly<Record<string, unknown>>, name: string, most: number): string {
  const value = body[name];
  if (typeof value === 'string' && value.length <= most && PLAIN.test(value)) return value;
  throw wrong(`${name} must be a text of 1 to ${most} characters, none of them a control character`);
}

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const wrong = (message: string): MillraceError => new MillraceError('MILLRACE_INVALID_REQUEST', message);
