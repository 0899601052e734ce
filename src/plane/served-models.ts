/** Which models a plane serves and how, from its configuration and from what its workers list. Pure; runs on the core. */
import type { Config } from '../config.js';
import type { ListedModel } from '../frontend/openai/models-response.js';
import type { ModelView, WorkerView } from '../messages/records.js';
import { splitModel } from './disagg-models.js';
import type { PeerSays } from './peer-facts.js';
import type { TextModels } from './text-models.js';

/** Every model that is configured or that a worker lists. `says`: what a worker says of itself. `note` is told what of it is not as it was meant. */
export function servedModels(
  config: Config,
  workers: readonly WorkerView[],
  textModels: Pick<TextModels, 'keyOf'>,
  says: (worker: WorkerView) => PeerSays,
  note: (notice: string) => void,
): ModelView[] {
  const names = new Set([
    ...Object.keys(config.models),
    ...workers.flatMap(worker => worker.models.map(model => model.id)),
  ]);
  return [...names].map(name => {
    const own = config.models[name];
    const serving = workers.filter(({ models }) => models.some(({ id }) => id === name));
    const { view, notices } = splitModel(name, serving, says, own?.disaggregation);
    for (const notice of notices) note(notice);
    return {
      name,
      policy: own?.policy ?? config.policy,
      tokenizer: textModels.keyOf(name),
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
  return models.map(model => ({
    id: model.name,
    created: createdSeconds,
    contextLength: model.contextLength ?? lengths.get(model.name) ?? textModels.contextLength(model.name),
  }));
}
