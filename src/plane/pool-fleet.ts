/**
 * The fleet as a pool thread knows it (R3, R4): the models and workers of the last WORLD, the text models that they name,
 * and the questions about them that planning asks. State: replaced with each WORLD, owned by the pool thread.
 */
import { strict as assert } from 'node:assert';
import { InvalidRequestError, RejectedError } from '../errors.js';
import type { ModelView, WorkerView, World } from '../messages/records.js';
import type { TextModel } from '../preprocess/text-model.js';
import { WORKER_HEADER } from './routing-hints.js';

/** See the head of the file. */
export class PoolFleet {
  readonly #textModels = new Map<string, TextModel>();
  readonly #models = new Map<string, ModelView>();
  #workers: readonly WorkerView[] = [];

  /** Replaces what is known. `textModels` holds at least those that the models name. */
  setWorld(world: World, textModels: ReadonlyMap<string, TextModel>): void {
    this.#workers = world.workers;
    this.#models.clear();
    for (const model of world.models) this.#models.set(model.name, model);
    for (const [key, textModel] of textModels) this.#textModels.set(key, textModel);
  }

  /** The model that a request names. Throws the error that the client is to see. */
  model(name: string): ModelView {
    const model = this.#models.get(name);
    if (model !== undefined) return model;
    if (this.#models.size === 0) {
      throw new RejectedError('MILLRACE_NO_WORKER', 'no worker is ready', { retryAfterMs: 1000 });
    }
    const shown = name.length > 100 ? `${name.slice(0, 100)}…` : name;
    throw new InvalidRequestError(
      'MILLRACE_UNKNOWN_MODEL',
      `the model "${shown}" does not exist; GET /v1/models lists those that do`,
      { param: 'model' },
    );
  }

  #serving(model: ModelView): WorkerView[] {
    return this.#workers.filter(worker => worker.models.some(entry => entry.id === model.name));
  }

  /** The worker in a slot; there is one. */
  workerIn(slot: number): WorkerView {
    const worker = this.#workers.find(entry => entry.slot === slot);
    assert(worker !== undefined, 'the decider chooses among the workers of this world');
    return worker;
  }

  /** The workers of the model, or the one of them that the request is pinned to (''; to none). Throws as `model`. */
  eligible(model: ModelView, pinned: string): WorkerView[] {
    const serving = this.#serving(model);
    if (pinned === '') return serving;
    const worker = serving.find(({ url }) => url === pinned);
    if (worker !== undefined) return [worker];
    throw new RejectedError(
      'MILLRACE_NO_WORKER',
      `${WORKER_HEADER} names no worker that serves the model "${model.name}"`,
      { retryAfterMs: 1000 },
    );
  }

  /** Prompt and answer together, in tokens: what is set, else what the workers say, else what the model's files say. */
  contextLength(model: ModelView, serving: readonly WorkerView[]): number | null {
    return (
      model.contextLength ??
      narrowestContext(serving, model.name) ??
      this.textModel(model)?.contextLength ??
      null
    );
  }

  /** What makes our ids of the model; null: nothing does. */
  textModel(model: ModelView): TextModel | null {
    if (model.tokenizer === null) return null;
    const textModel = this.#textModels.get(model.tokenizer);
    assert(textModel !== undefined, `the text model ${model.tokenizer} is loaded with its world`);
    return textModel;
  }
}

/** True where this worker takes our ids of the model and answers in ids. */
export function servesTokens(worker: WorkerView, model: ModelView): boolean {
  return worker.returnsTokenIds && !worker.foreignIds.includes(model.name);
}

function narrowestContext(workers: readonly WorkerView[], model: string): number | null {
  let narrowest: number | null = null;
  for (const worker of workers) {
    const length = worker.models.find(entry => entry.id === model)?.contextLength ?? null;
    if (length !== null && (narrowest === null || length < narrowest)) narrowest = length;
  }
  return narrowest;
}
