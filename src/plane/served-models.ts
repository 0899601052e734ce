/** Which models a plane serves and how, from its configuration and from what its workers list. Pure; runs on the core. */
import type { Config } from '../config.js';
import type { ListedModel } from '../frontend/openai/models-response.js';
import type { ModelView, WorkerView } from '../messages/records.js';
import { splitModel } from './disagg-models.js';
import type { PeerSays } from './peer-facts.js';
import { settingsName, type TextModels } from './text-models.js';

/** The models that adapters sit on, by the names of the adapters. */
function parentsOf(workers: readonly WorkerView[]): ReadonlyMap<string, string> {
  const parents = new Map<string, string>();
  for (const { id, parent } of workers.flatMap(worker => worker.models))
    if (parent !== undefined) parents.set(id, parent);
  return parents;
}

/**
 * Every model that is configured or that a worker lists; an adapter has its model's settings. `says`: what a worker says of
 * itself. `note` is told what of it is not as it was meant, `isWhole`: no worker is on its way up for the first time.
 */
export function servedModels(
  config: Config,
  workers: readonly WorkerView[],
  textModels: Pick<TextModels, 'keyOf'>,
  says: (worker: WorkerView) => PeerSays,
  { note, isWhole }: { readonly note: (notice: string) => void; readonly isWhole: boolean },
): ModelView[] {
  const names = new Set([
    ...Object.keys(config.models),
    ...workers.flatMap(worker => worker.models.map(model => model.id)),
  ]);
  const parents = parentsOf(workers);
  return [...names].map(name => {
    const parent = parents.get(name) ?? null;
    const settings = settingsName(config, name, parent);
    const own = settings === null ? undefined : config.models[settings];
    const serving = workers.filter(({ models }) => models.some(({ id }) => id === name));
    const { view, notices } = splitModel(name, serving, says, own?.disaggregation, isWhole);
    for (const notice of notices) note(notice);
    return {
      name,
      policy: own?.policy ?? config.policy,
      tokenizer: textModels.keyOf(name, parent),
      contextLength: own?.contextLength ?? null,
      ...(view === null ? {} : { disaggregation: view }),
    };
  });
}

/** The same models for `GET /v1/models`, with the shortest context that a worker has for each, else that of its files. */
export function listedModels(
  models: readonly ModelView[],
  workers: readonly WorkerView[],
  textModels: Pick<TextModels, 'contextLength'>,
  createdSeconds: number,
): ListedModel[] {
  const lengths = new Map<string, number>();
  for (const { id, contextLength } of workers.flatMap(worker => worker.models)) {
    if (contextLength !== null) lengths.set(id, Math.min(contextLength, lengths.get(id) ?? contextLength));
  }
  const parents = parentsOf(workers);
  return models.map(({ name, contextLength }) => {
    const parent = parents.get(name) ?? null;
    return {
      id: name,
      created: createdSeconds,
      contextLength: contextLength ?? lengths.get(name) ?? textModels.contextLength(name, parent),
      ...(parent === null ? {} : { parent }),
    };
  });
}
