/** POST /tokenize and /detokenize as vLLM has them, and SGLang after it. Pure. */
import { type Body, booleanOf, idsOf, stringOf } from './body-fields.js';
import { adapterOf, chatPrompt, type ServedModel } from './generation-request.js';

/** Answer of /tokenize. Throws HttpError. */
export function tokenizeAnswer(body: Body, model: ServedModel): object {
  adapterOf(body, model);
  const text = stringOf(body, 'prompt', null);
  const ids = text === null ? chatPrompt(body, model.tokenizer) : model.tokenizer.encode(text);
  const strings = booleanOf(body, 'return_token_strs', false)
    ? [...ids].map(id => decode(model, [id]))
    : null;
  return { count: ids.length, max_model_len: model.maxModelLen, tokens: [...ids], token_strs: strings };
}

/** Answer of /detokenize. Throws HttpError. */
export function detokenizeAnswer(body: Body, model: ServedModel): object {
  adapterOf(body, model);
  return { prompt: decode(model, idsOf(body.tokens, 'tokens', model.tokenizer.vocabularySize)) };
}

function decode({ tokenizer }: ServedModel, ids: Iterable<number>): string {
  const parts = Array.from(ids, id => tokenizer.bytesOf(id) ?? new Uint8Array(0));
  return Buffer.concat(parts).toString('utf8');
}
