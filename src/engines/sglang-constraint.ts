/**
 * Constrained decoding for SGLang's /generate (R5, pool thread): what clients write in OpenAI's, vLLM's or SGLang's own
 * fields, under the names of SGLang's sampling parameters. Source: sglang/srt/sampling/sampling_params.py, and for
 * `json_object` sglang/srt/entrypoints/openai/serving_chat.py. Pure.
 */

type Params = Readonly<Record<string, string>>;
type Reader = (value: unknown) => Params | null;

const NONE: Params = {};

/** Sampling parameters, and the field that has no form among them (null: every field has one). */
export interface Constraint {
  readonly params: Params;
  readonly gap: string | null;
}

const ANY_OBJECT = '{"type":"object"}';

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const text =
  (name: string): Reader =>
  value =>
    typeof value === 'string' ? { [name]: value } : null;

/** A JSON schema, as an object or as its text. */
const schema: Reader = value => {
  if (typeof value === 'string') return { json_schema: value };
  return isRecord(value) ? { json_schema: JSON.stringify(value) } : null;
};

const choice: Reader = value => {
  if (!Array.isArray(value) || value.length === 0 || !value.every(one => typeof one === 'string'))
    return null;
  const escaped = value.map(one => one.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'));
  return { regex: `(${escaped.join('|')})` };
};

const responseFormat: Reader = value => {
  if (!isRecord(value)) return null;
  if (value.type === 'text') return NONE;
  if (value.type === 'json_object') return { json_schema: ANY_OBJECT };
  if (value.type === 'structural_tag') return { structural_tag: JSON.stringify(value) };
  return value.type === 'json_schema' && isRecord(value.json_schema)
    ? schema(value.json_schema.schema)
    : null;
};

/** vLLM's newer form: one object with one of these. */
const STRUCTURED: Readonly<Record<string, Reader>> = {
  json: schema,
  json_object: value => (value === true ? { json_schema: ANY_OBJECT } : NONE),
  regex: text('regex'),
  grammar: text('ebnf'),
  choice,
  structural_tag: text('structural_tag'),
};

const structuredOutputs: Reader = value => {
  if (!isRecord(value)) return null;
  const given = Object.entries(value).filter(([, one]) => one !== null);
  const params = given.map(([name, one]) =>
    Object.hasOwn(STRUCTURED, name) ? STRUCTURED[name]!(one) : null,
  );
  return params.includes(null) ? null : Object.assign({}, ...params);
};

const FIELDS: Readonly<Record<string, Reader>> = {
  response_format: responseFormat,
  structured_outputs: structuredOutputs,
  guided_json: schema,
  guided_regex: text('regex'),
  guided_grammar: text('ebnf'),
  guided_choice: choice,
  json_schema: schema,
  regex: text('regex'),
  ebnf: text('ebnf'),
  structural_tag: text('structural_tag'),
};

/** Names of all fields that are read here. */
export const CONSTRAINT_FIELDS: readonly string[] = Object.keys(FIELDS);

/** The constraint among a client's fields. Two at a time are left to the engine to refuse. */
export function constraintOf(fields: Readonly<Record<string, unknown>>): Constraint {
  const params: Record<string, string> = {};
  for (const name of CONSTRAINT_FIELDS) {
    const value = Object.hasOwn(fields, name) ? (fields[name] ?? null) : null;
    if (value === null) continue;
    const read = FIELDS[name]!(value);
    if (read === null) return { params: {}, gap: name };
    Object.assign(params, read);
  }
  return { params, gap: null };
}
