/**
 * The fleet as a pool thread knows it (R3, R4): the models and workers of the last WORLD, the text models that they name,
 * and the questions about them that planning asks. State: replaced with each WORLD, owned by the pool thread.
 */
import { strict as assert } from 'node:assert';
import { InvalidRequestError, RejectedError } from '../errors.js';
import type { AnswerMode, ModelView, WorkerView, World } from '../messages/records.js';
import type { TextModel } from '../preprocess/text-model.js';
import { BLOCK_SIZE_UNKNOWN } from '../router/candidate-columns.js';
import { WORKER_HEADER, workerName } from './routing-hints.js';

/** The workers that may serve a request, in relay mode if nothing else is said, and what follows from them. Not pinned: the same object until the next WORLD. */
export interface Serving {
  readonly workers: readonly WorkerView[];
  /** Those that take our ids of the model and answer in ids. */
  readonly tokenWorkers: readonly WorkerView[];
  /** The different engines of all, and of those. */
  readonly engines: readonly string[];
  readonly tokenEngines: readonly string[];
  /** Prompt and answer together, in tokens: what is set, else what the workers say, else what the model's files say. */
  readonly contextLength: number | null;
  /** The different ones of the workers, in tokens. */
  readonly blockSizes: readonly number[];
  /** Name of the LoRA adapter that the model is; '' for none. */
  readonly adapter: string;
}

/** Whether a worker can be asked for this mode. */
export function canAnswer({ answerModes, returnsTokenIds }: WorkerView, mode: AnswerMode): boolean {
  return answerModes?.includes(mode) ?? (returnsTokenIds || mode === 'relay');
}

/** See the head of the file. */
export class PoolFleet {
  readonly #textModels = new Map<string, TextModel>();
  readonly #models = new Map<string, ModelView>();
  readonly #workers = new Map<number, WorkerView>();
  /** By model, made when it is first asked for. */
  readonly #serving = new Map<string, Serving>();

  /** Replaces what is known. `textModels` holds at least those that the models name. */
  setWorld(world: World, textModels: ReadonlyMap<string, TextModel>): void {
    this.#workers.clear();
    for (const worker of world.workers) this.#workers.set(worker.slot, worker);
    this.#serving.clear();
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

  /** The worker in a slot; there is one. */
  workerIn(slot: number): WorkerView {
    const worker = this.#workers.get(slot);
    assert(worker !== undefined, 'the decider chooses among the workers of this world');
    return worker;
  }

  /** Who may serve the model, or of those the workers that the request is pinned to (''; it is not). Throws as `model`. */
  serving(model: ModelView, pinned: string): Serving {
    let serving = this.#serving.get(model.name);
    if (serving === undefined) {
      serving = this.#servingOf(model, this.#listing(model));
      this.#serving.set(model.name, serving);
    }
    if (pinned === '') return serving;
    const named = this.#listing(model).filter(
      ({ url, rank }) => url === pinned || workerName(url, rank) === pinned,
    );
    if (named.length > 0) return this.#servingOf(model, named);
    const message = `${WORKER_HEADER} names no worker that serves the model "${model.name}"`;
    throw new RejectedError('MILLRACE_NO_WORKER', message, { retryAfterMs: 1000 });
  }

  #listing({ name }: ModelView): WorkerView[] {
    return [...this.#workers.values()].filter(({ models }) => models.some(({ id }) => id === name));
  }

  #servingOf(model: ModelView, workers: readonly WorkerView[]): Serving {
    const { name } = model;
    const listed = workers.flatMap(({ models }) => models.filter(({ id }) => id === name));
    const tokenWorkers = workers.filter(
      worker => canAnswer(worker, 'token') && !worker.foreignIds.includes(name),
    );
    const lengths = listed.flatMap(({ contextLength }) => contextLength ?? []);
    const narrowest = lengths.length === 0 ? null : lengths.reduce((a, b) => Math.min(a, b));
    return {
      workers: workers.filter(worker => canAnswer(worker, 'relay') || canAnswer(worker, 'relayIds')),
      tokenWorkers,
      engines: [...new Set(workers.map(({ engine }) => engine))],
      tokenEngines: [...new Set(tokenWorkers.map(({ engine }) => engine))],
      contextLength: model.contextLength ?? narrowest ?? this.textModel(model)?.contextLength ?? null,
      blockSizes: [...new Set(workers.map(({ blockSize }) => blockSize ?? BLOCK_SIZE_UNKNOWN))],
      adapter: listed.some(({ adapter }) => adapter) ? name : '',
    };
  }

  /** What makes our ids of the model; null: nothing does. */
  textModel(model: ModelView): TextModel | null {
    if (model.tokenizer === null) return null;
    const textModel = this.#textModels.get(model.tokenizer);
    assert(textModel !== undefined, `the text model ${model.tokenizer} is loaded with its world`);
    return textModel;
  }
}
