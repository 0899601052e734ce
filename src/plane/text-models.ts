/**
 * The text models of a plane: which model uses which, what the other threads need of them, and whether a worker makes
 * the same ids. Opened once, before anything is served, so that a wrong folder is an error at start. Lives on the thread
 * of the plane; pool threads load their own from `folders`.
 */
import type { Config } from '../config.js';
import type { EngineAdapter, Poster, TokenizeSample, WorkerCapabilities } from '../engines/contract.js';
import { InvalidRequestError } from '../errors.js';
import { createDetokenizerTable, type DetokenizerTable } from '../preprocess/detokenizer.js';
import { type ModelFolder, openModelFolder } from '../preprocess/model-folder/model-folder.js';
import { loadTextModel, type PromptIds, type TextModel } from '../preprocess/text-model.js';
import { loadTokenizer } from '../preprocess/tokenizers/load.js';
import type { Clock } from '../runtime/clock.js';
import type { Logger } from '../runtime/logger.js';

/** Scripts, digits, white space and punctuation on which tokenizers part; nothing that spells a special token. */
const SAMPLE_TEXT =
  'It\'s 12345.67 naïve cafés — "São Paulo", 東京とソウル서울, привет, 🦙🚀.\n\n\tdef f(x_1):  return x_1**2 != 0  # ok\r\n';
const SAMPLE_CHAT = [
  { role: 'user', content: SAMPLE_TEXT },
  { role: 'assistant', content: 'Yes, 42.' },
  { role: 'user', content: 'Why?' },
];

/** What names a text model: a key of TextModel and the setting that gave it. */
interface Named {
  readonly key: string;
  readonly isFolder: boolean;
  readonly source: string;
}

function namedBy(path: string | null, tokenizer: string | null, source: string): Named | null {
  if (path !== null) return { key: path, isFolder: true, source };
  return tokenizer === null ? null : { key: tokenizer, isFolder: false, source };
}

const sharedBy = (config: Config): Named | null => namedBy(config.modelPath, config.tokenizer, 'modelPath');

function ownOf(config: Config, model: string): Named | null {
  const { path, tokenizer } = config.models[model]!;
  return namedBy(path, tokenizer, `models.${model}.path`);
}

/** Whose settings a model is served by: its own, or those of the model that it is an adapter on; null: neither has any. */
export function settingsName(
  { models }: Pick<Config, 'models'>,
  model: string,
  parent: string | null,
): string | null {
  if (Object.hasOwn(models, model)) return model;
  return parent !== null && Object.hasOwn(models, parent) ? parent : null;
}

/** See the head of the file. */
export class TextModels {
  /** The folders, for the pool threads. */
  readonly folders: readonly ModelFolder[];
  /** The detokenizers' tables by key, for the socket threads. */
  readonly tables: ReadonlyMap<string, DetokenizerTable>;
  readonly #config: Config;
  readonly #logger: Logger;
  readonly #models: ReadonlyMap<string, TextModel>;
  /** What was said last of a worker's ids, so that a worker that comes and goes is not reported again and again. */
  readonly #said = new Map<string, string>();

  /** Loads all that the configuration names. Throws ConfigError naming the setting, the folder and the file. */
  static async open(config: Config, clock: Clock, logger: Logger): Promise<TextModels> {
    const folders: ModelFolder[] = [];
    const models = new Map<string, TextModel>();
    const tables = new Map<string, DetokenizerTable>();
    const seen = new Set<string>();
    for (const named of [
      sharedBy(config),
      ...Object.keys(config.models).map(model => ownOf(config, model)),
    ]) {
      if (named === null || seen.has(named.key)) continue;
      const { key, isFolder, source } = named;
      seen.add(key);
      if (isFolder) {
        const opened = openModelFolder(key, source);
        if ('unsupported' in opened) {
          const reason = `its tokenizer.json ${opened.unsupported}`;
          logger.warn('model folder cannot serve token mode: its models are relayed', { path: key, reason });
          continue;
        }
        folders.push(opened.folder);
        tables.set(key, createDetokenizerTable(opened.tokens));
      } else {
        tables.set(key, createDetokenizerTable(await loadTokenizer(key)));
      }
      const model = await loadTextModel(key, folders, clock);
      models.set(key, model);
      if (isFolder) logLoaded(logger, key, model);
    }
    return new TextModels(config, logger, folders, models, tables);
  }

  private constructor(
    config: Config,
    logger: Logger,
    folders: readonly ModelFolder[],
    models: ReadonlyMap<string, TextModel>,
    tables: ReadonlyMap<string, DetokenizerTable>,
  ) {
    this.#config = config;
    this.#logger = logger;
    this.folders = folders;
    this.#models = models;
    this.tables = tables;
  }

  /** Key of a served model's text model, or null: relay mode. `parent`: the model that it is an adapter on. */
  keyOf(model: string, parent: string | null = null): string | null {
    const own = settingsName(this.#config, model, parent);
    const key = (own === null ? sharedBy(this.#config) : ownOf(this.#config, own))?.key;
    return key !== undefined && this.#models.has(key) ? key : null;
  }

  /** What the model's files say of its context, in tokens. */
  contextLength(model: string, parent: string | null = null): number | null {
    const key = this.keyOf(model, parent);
    return key === null ? null : this.#models.get(key)!.contextLength;
  }

  /**
   * The models of a worker for which it makes other ids than we do, found with a sample text and a sample chat. Asked
   * once per text model, by the first of the worker's models that uses it. Says so, once. Rejects with WorkerError.
   */
  async findForeignIds(
    url: string,
    facts: WorkerCapabilities,
    adapter: EngineAdapter,
    post: Poster,
  ): Promise<readonly string[]> {
    const foreign: string[] = [];
    if (!facts.returnsTokenIds) return foreign;
    const byKey = new Map<string, string[]>();
    for (const { id, parent } of facts.models) {
      const key = this.keyOf(id, parent ?? null);
      if (key !== null) byKey.set(key, [...(byKey.get(key) ?? []), id]);
    }
    for (const [key, models] of byKey) {
      const found = await compare(this.#models.get(key)!, adapter, post, models[0]!);
      if (found === 'differ') foreign.push(...models);
      this.#say(url, key, models[0]!, found);
    }
    return foreign;
  }

  #say(worker: string, tokenizer: string, model: string, found: Comparison): void {
    const name = `${worker} ${tokenizer}`;
    const before = this.#said.get(name) ?? 'agree';
    this.#said.set(name, found);
    if (found === before) return;
    const fields = { worker, model, tokenizer };
    if (found === 'differ') {
      this.#logger.warn('the worker makes other token ids: its requests are relayed, not tokenized', fields);
    } else if (found === 'unknown') {
      this.#logger.warn(
        'the worker does not tokenize for us: its ids are taken to be ours, unchecked',
        fields,
      );
    } else {
      this.#logger.info('the worker makes our token ids again', fields);
    }
  }
}

function logLoaded(logger: Logger, path: string, model: TextModel): void {
  logger.info('model folder is loaded', {
    path,
    encoder: model.encoder,
    vocabulary: model.vocabularySize,
    contextLength: model.contextLength,
    chatTemplate: model.rendersChat,
    eosIds: model.eosIds.join(','),
  });
}

/** unknown: the worker answered no sample. */
type Comparison = 'agree' | 'differ' | 'unknown';

async function compare(
  textModel: TextModel,
  adapter: EngineAdapter,
  post: Poster,
  model: string,
): Promise<Comparison> {
  const samples: [TokenizeSample, PromptIds][] = [
    [{ prompt: SAMPLE_TEXT }, textModel.encodePrompt(SAMPLE_TEXT)],
  ];
  const chat = encodeSampleChat(textModel);
  if (chat !== null) samples.push([{ messages: SAMPLE_CHAT }, chat]);
  let compared = 0;
  for (const [sample, promised] of samples) {
    const ours = await promised;
    const theirs = await adapter.tokenize(post, model, sample);
    if (theirs === null) continue;
    compared++;
    if (ours.length !== theirs.length || ours.some((id, index) => id !== theirs[index])) return 'differ';
  }
  return compared === 0 ? 'unknown' : 'agree';
}

/** Null: the model has no template, or one that refuses these turns. */
function encodeSampleChat(textModel: TextModel): PromptIds | null {
  if (!textModel.rendersChat) return null;
  try {
    return textModel.encodeChat(
      SAMPLE_CHAT.map(({ role, content }) => ({ role, text: content, hasMedia: false })),
    );
  } catch (error) {
    if (error instanceof InvalidRequestError) return null;
    throw error;
  }
}
