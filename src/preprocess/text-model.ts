/**
 * A text model (R3): everything that makes prompt ids of one model, under the key that a model's configuration leads to:
 * the name of a built-in tokenizer or the path of a model folder. Each pool thread loads its own from the same source, as
 * does the thread that compares ids with the workers. A built-in model answers at once; a folder may answer by promise,
 * because the native tokenizer works on libuv's pool.
 */
import type { ChatMessage } from '../messages/token-request.js';
import type { Clock } from '../runtime/clock.js';
import { renderChat } from './chat-template.js';
import { loadFolderModel } from './model-folder/folder-model.js';
import type { ModelFolder } from './model-folder/model-folder.js';
import { loadTokenizer } from './tokenizers/load.js';

/** Ids now, or a promise of them. */
export type PromptIds = Uint32Array | Promise<Uint32Array>;

/** One model's way from text to ids. Belongs to one thread. */
export interface TextModel {
  /** What makes the ids, for the start line: `built-in`, `native` or `javascript`. */
  readonly encoder: string;
  /** One more than the highest id. */
  readonly vocabularySize: number;
  /** Ids that end an answer (not shown). */
  readonly eosIds: Uint32Array;
  /** Prompt and answer together, in tokens; null: the model does not say. */
  readonly contextLength: number | null;
  /** False: there is no chat template, so that chats are the engine's own work. */
  readonly rendersChat: boolean;
  /** Ids of a completion's prompt, as an engine makes them. */
  encodePrompt(text: string): PromptIds;
  /**
   * Ids of a chat, ending where the assistant's answer begins. Throws InvalidRequestError (at once, not by promise) when
   * the model's template does not take the messages. Only where `rendersChat`.
   */
  encodeChat(messages: readonly ChatMessage[]): PromptIds;
}

async function loadBuiltIn(name: string): Promise<TextModel> {
  const tokenizer = await loadTokenizer(name);
  return {
    encoder: 'built-in',
    vocabularySize: tokenizer.vocabularySize,
    eosIds: tokenizer.eosIds,
    contextLength: null,
    rendersChat: true,
    encodePrompt: text => tokenizer.encode(text),
    encodeChat: messages => renderChat(tokenizer, messages),
  };
}

/**
 * Builds the text model of a key: that of `folders` with this path, else the built-in tokenizer of this name. Rejects
 * with ConfigError naming what is wrong.
 */
export async function loadTextModel(
  key: string,
  folders: readonly ModelFolder[],
  clock: Pick<Clock, 'wallMs'>,
): Promise<TextModel> {
  const folder = folders.find(entry => entry.path === key);
  return folder === undefined ? loadBuiltIn(key) : loadFolderModel(folder, clock);
}
