/**
 * A model folder as Hugging Face's libraries write it (R3): read and checked once, at start, on the main thread. What the
 * other threads need of it crosses to them as one plain record over shared bytes, so that every thread works from the
 * same files even when the folder changes later. Files: tokenizer.json (required), tokenizer_config.json,
 * chat_template.jinja, chat_template.json, config.json, generation_config.json.
 */
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { ConfigError } from '../../errors.js';
import { allocateShared, sharedBytes } from '../../runtime/shared-memory.js';
import type { TokenTable } from '../tokenizers/tokenizer.js';
import type { TemplateSources } from './jinja-template.js';
import { parseLenientJson } from './lenient-json.js';
import { isFields, type JsonFields, readAddedTokens, readTokenTable } from './token-table.js';

const BLANK = 0x20;
const MIB = 1_048_576;
/** Largest file that is read, by name. */
const FILE_BYTES_MAX = {
  'tokenizer.json': 256 * MIB,
  'tokenizer_config.json': 16 * MIB,
  'chat_template.jinja': MIB,
  'chat_template.json': MIB,
  'config.json': 16 * MIB,
  'generation_config.json': MIB,
} as const;
type FileName = keyof typeof FILE_BYTES_MAX;

/** A length above this is Python's way to say that there is none. */
const CONTEXT_TOKENS_MAX = 100_000_000;

/** A folder that was read; structured-cloned to other threads, its big file shared. */
export interface ModelFolder {
  /** Absolute. */
  readonly path: string;
  /** The setting that named it, for messages. */
  readonly source: string;
  /** UTF-8 text of tokenizer.json. */
  readonly tokenizerJson: SharedArrayBuffer;
  /** Text of tokenizer_config.json, '{}' without one. */
  readonly tokenizerConfig: string;
  /** Null: the model has no chat template. */
  readonly templates: TemplateSources | null;
  /** The special tokens by the names that templates use. */
  readonly templateVariables: Readonly<Record<string, string>>;
  readonly vocabularySize: number;
  /** Special tokens by text: what may end a turn. */
  readonly specials: readonly (readonly [text: string, id: number])[];
  /** As the model's files name them; empty: they do not. */
  readonly eosIds: readonly number[];
  /** generation_config.json names them, which is the engine's own list. */
  readonly eosIsComplete: boolean;
  readonly contextLength: number | null;
}

/** A folder and what its ids stand for, or why it cannot serve token mode (the end of a sentence about the file). */
export type OpenedFolder =
  | { readonly folder: ModelFolder; readonly tokens: TokenTable }
  | { readonly unsupported: string };

/** Error of one file of a folder. */
export function folderError(
  folder: { path: string; source: string },
  file: string,
  cause: unknown,
): ConfigError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new ConfigError(`${folder.source} ${folder.path}: ${file}: ${reason}`, { cause });
}

/** Reads a file of the folder; null when there is none. Throws ConfigError when it cannot be read or is too large. */
function readFile(at: { path: string; source: string }, file: FileName): Buffer | null {
  try {
    const name = join(at.path, file);
    const { size } = statSync(name);
    const max = FILE_BYTES_MAX[file];
    if (size > max) throw new Error(`has ${size} bytes; allowed: up to ${max}`);
    return readFileSync(name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw folderError(at, file, error);
  }
}

function parseFields(
  at: { path: string; source: string },
  file: FileName,
  bytes: Buffer,
  parse: (text: string) => unknown,
): JsonFields {
  let value: unknown;
  try {
    value = parse(bytes.toString('utf8'));
  } catch (error) {
    throw folderError(at, file, `is not valid JSON: ${(error as Error).message}`);
  }
  if (!isFields(value)) throw folderError(at, file, 'must hold a JSON object');
  return value;
}

/** The fields of a small file; none when there is no such file. */
function readFields(at: { path: string; source: string }, file: FileName): JsonFields {
  const bytes = readFile(at, file);
  return bytes === null ? {} : parseFields(at, file, bytes, parseLenientJson);
}

/** The first source that the folder has, in the order of transformers: a file of its own wins over the tokenizer's. */
function readTemplates(at: { path: string; source: string }, config: JsonFields): TemplateSources | null {
  const own = readFile(at, 'chat_template.jinja');
  if (own !== null) return { default: own.toString('utf8'), toolUse: null };
  for (const [file, fields] of [
    ['chat_template.json', readFields(at, 'chat_template.json')],
    ['tokenizer_config.json', config],
  ] as const) {
    const template = fields.chat_template ?? null;
    if (template === null) continue;
    if (typeof template === 'string') return { default: template, toolUse: null };
    const named = Array.isArray(template) ? template.filter(isFields) : [];
    const find = (name: string): string | null => {
      const entry = named.find(one => one.name === name)?.template;
      return typeof entry === 'string' ? entry : null;
    };
    const preset = find('default');
    if (preset === null) {
      throw folderError(at, file, 'chat_template must be a text, or a list with a template named "default"');
    }
    return { default: preset, toolUse: find('tool_use') };
  }
  return null;
}

/** `<s>`, or `{"content": "<s>", …}`. */
function tokenText(value: unknown): string | null {
  if (typeof value === 'string') return value;
  return isFields(value) && typeof value.content === 'string' ? value.content : null;
}

/** An id, a list of them, or nothing. */
const idsOf = (value: unknown): number[] =>
  (Array.isArray(value) ? value : [value]).filter((id): id is number => Number.isSafeInteger(id) && id >= 0);

function contextLengthOf(config: JsonFields, tokenizerConfig: JsonFields): number | null {
  const text = isFields(config.text_config) ? config.text_config : {};
  const lengths = [
    config.max_position_embeddings,
    text.max_position_embeddings,
    tokenizerConfig.model_max_length,
  ];
  const said = lengths.find(
    (length): length is number =>
      Number.isSafeInteger(length) && (length as number) > 0 && (length as number) <= CONTEXT_TOKENS_MAX,
  );
  return said ?? null;
}

/**
 * Reads the folder at `path` (absolute). Throws ConfigError that names `source`, the folder, the file and what is wrong
 * with it.
 * @param source the setting that names the folder, such as `models.llama.path`
 */
export function openModelFolder(path: string, source: string): OpenedFolder {
  const at = { path, source };
  const stats = statSync(path, { throwIfNoEntry: false });
  if (stats?.isDirectory() !== true) throw new ConfigError(`${source} ${path}: there is no such folder`);
  const bytes = readFile(at, 'tokenizer.json');
  if (bytes === null) throw folderError(at, 'tokenizer.json', 'is missing');
  const tokenizerConfig = readFields(at, 'tokenizer_config.json');
  const config = readFields(at, 'config.json');
  const generation = readFields(at, 'generation_config.json');
  const templates = readTemplates(at, tokenizerConfig);
  let tokens: ReturnType<typeof readTokenTable>;
  let added: ReturnType<typeof readAddedTokens>;
  const json = parseFields(at, 'tokenizer.json', bytes, JSON.parse);
  try {
    tokens = readTokenTable(path, json);
    added = readAddedTokens(json);
  } catch (error) {
    throw folderError(at, 'tokenizer.json', error);
  }
  if ('unsupported' in tokens) return tokens;
  const templateVariables: Record<string, string> = {};
  for (const name of ['bos_token', 'eos_token', 'pad_token', 'unk_token']) {
    const text = tokenText(tokenizerConfig[name]);
    if (text !== null) templateVariables[name] = text;
  }
  const text = isFields(config.text_config) ? config.text_config : {};
  const tokenizerEos = added.filter(token => token.content === templateVariables.eos_token);
  const generationEos = idsOf(generation.eos_token_id);
  const tokenizerJson = allocateShared(bytes.byteLength, 'tokenizer.json');
  // Segments are whole cache lines; blanks at the end of JSON mean nothing.
  sharedBytes(tokenizerJson).fill(BLANK).set(bytes);
  return {
    tokens,
    folder: {
      path,
      source,
      tokenizerJson,
      tokenizerConfig: JSON.stringify(tokenizerConfig),
      templates,
      templateVariables,
      vocabularySize: tokens.vocabularySize,
      specials: added.filter(token => token.special).map(({ content, id }) => [content, id] as const),
      eosIds: [
        ...new Set([
          ...generationEos,
          ...tokenizerEos.map(token => token.id),
          ...idsOf(config.eos_token_id),
          ...idsOf(text.eos_token_id),
        ]),
      ],
      eosIsComplete: generationEos.length > 0,
      contextLength: contextLengthOf(config, tokenizerConfig),
    },
  };
}
