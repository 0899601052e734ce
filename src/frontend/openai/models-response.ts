/** Bodies of GET /v1/models and /v1/models/{id} (R7). Pure, socket thread. */

/** A served model as clients see it. */
export interface ListedModel {
  readonly id: string;
  /** Unix seconds at which Millrace began to serve it. */
  readonly created: number;
  /** Tokens of prompt and answer together, or null when no worker says. */
  readonly contextLength: number | null;
  /** The model that it is a LoRA adapter on; absent: it is none. */
  readonly parent?: string;
}

function modelObject(model: ListedModel): object {
  const length = model.contextLength;
  return {
    id: model.id,
    object: 'model',
    created: model.created,
    owned_by: 'millrace',
    ...(model.parent === undefined ? {} : { parent: model.parent }),
    // vLLM's name and Dynamo's name for the same number.
    ...(length === null ? {} : { max_model_len: length, context_window: length }),
  };
}

/** Body of GET /v1/models. */
export function modelsBody(models: readonly ListedModel[]): string {
  return JSON.stringify({ object: 'list', data: models.map(modelObject) });
}

/** Body of GET /v1/models/{id}. */
export function modelBody(model: ListedModel): string {
  return JSON.stringify(modelObject(model));
}
