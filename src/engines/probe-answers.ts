/**
 * Reading what a server says of itself (R5, health monitor): the parts of a probe that all engines with OpenAI's routes
 * have in common. Pure; runs on the registry's thread.
 */
import { WorkerError } from '../errors.js';
import type { WorkerModel } from '../messages/records.js';
import type { Fetcher } from './contract.js';

/** Answer of a Fetcher. */
export type ProbeAnswer = Awaited<ReturnType<Fetcher>>;

/** A server that breaks its protocol; the message is for operators. */
export function protocolError(message: string): WorkerError {
  return new WorkerError('MILLRACE_WORKER_PROTOCOL', message);
}

/** The JSON object of an answer with status 200; null for anything else. */
export function objectOf({ status, body }: ProbeAnswer): Readonly<Record<string, unknown>> | null {
  if (status !== 200) return null;
  try {
    const value: unknown = JSON.parse(body);
    return isRecord(value) ? value : null;
  } catch {
    return null;
  }
}

/** Whether a parsed value is an object, not null and not a list. */
export function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Whether a value is an integer above 0. */
export function isPositive(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) > 0;
}

/** A server's version; null when it hides it: some deployments put only the OpenAI routes behind their proxy. */
export function readVersion(answer: ProbeAnswer): string | null {
  const version = objectOf(answer)?.version;
  return typeof version === 'string' && version !== '' ? version : null;
}

/** The list of GET /v1/models. `owners`: who the server says owns them. Throws WorkerError when it is none. */
export function readModels(answer: ProbeAnswer): { models: WorkerModel[]; owners: ReadonlySet<unknown> } {
  if (answer.status === 401 || answer.status === 403) {
    throw protocolError(`/v1/models answered ${answer.status}: the worker wants an API key`);
  }
  if (answer.status !== 200) throw protocolError(`/v1/models answered ${answer.status}, expected 200`);
  const data = objectOf(answer)?.data;
  if (!Array.isArray(data)) throw protocolError('/v1/models did not answer {"data": [...]}');
  const models: WorkerModel[] = [];
  const owners = new Set<unknown>();
  for (const entry of data as readonly unknown[]) {
    const model = isRecord(entry) ? entry : null;
    if (typeof model?.id !== 'string') throw protocolError('/v1/models lists a model without an id');
    const length = model.max_model_len;
    models.push({
      id: model.id,
      contextLength: isPositive(length) ? length : null,
      ...adapterFacts(model),
    });
    owners.add(model.owned_by);
  }
  if (models.length === 0) throw protocolError('/v1/models lists no model');
  const listed = new Map(models.map(model => [model.id, model.contextLength]));
  return { models: models.map(model => withContext(model, listed)), owners };
}

/** A LoRA adapter names the model that it sits on; `root` differs for renamed base models too, and is its path here. */
function adapterFacts({ id, parent, root }: Readonly<Record<string, unknown>>): Partial<WorkerModel> {
  if (typeof parent !== 'string' || parent === '' || parent === id) return {};
  return { adapter: true, parent, ...(typeof root === 'string' && root !== '' ? { path: root } : {}) };
}

/** An adapter has the context of its model; servers show none for it. */
function withContext(model: WorkerModel, listed: ReadonlyMap<string, number | null>): WorkerModel {
  if (model.parent === undefined || model.contextLength !== null) return model;
  return { ...model, contextLength: listed.get(model.parent) ?? null };
}

/**
 * What is wrong with a worker that was declared to serve `declared`, for operators; null: it does serve it. A name in the
 * configuration must be one that the worker lists, or its requests would end in 404.
 */
export function modelFault(models: readonly WorkerModel[], declared: string): string | null {
  if (models.some(model => model.id === declared)) return null;
  const listed = models.map(model => `"${model.id}"`).join(', ');
  return `it is declared to serve "${declared}", but lists ${listed}`;
}

/** A version as its first three numbers; null when it does not begin with two. */
export function versionParts(version: string): readonly [number, number, number] | null {
  const match = /^v?(\d+)\.(\d+)(?:\.(\d+))?/.exec(version);
  return match === null ? null : [Number(match[1]), Number(match[2]), Number(match[3] ?? 0)];
}

/** Whether `version` is `since` or later; false for one that is no version. */
export function isAtLeast(version: string, since: readonly [number, number, number]): boolean {
  const parts = versionParts(version);
  if (parts === null) return false;
  const at = parts.findIndex((part, index) => part !== since[index]);
  return at === -1 || parts[at]! > since[at]!;
}

/** A notice when the version is unknown or older than `since`, the first one that the adapter is written for. */
export function versionNotices(
  engine: string,
  version: string | null,
  since: readonly [number, number, number],
): string[] {
  if (version !== null && isAtLeast(version, since)) return [];
  const found = version === null ? 'does not tell its version' : `is version ${version}`;
  return [`this ${engine} server ${found}; the adapter is written for ${since.join('.')} and later`];
}
