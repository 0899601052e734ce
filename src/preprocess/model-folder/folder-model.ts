/**
 * The text model of a model folder (R3): its chat template and its encoder joined. Built on each thread that needs it,
 * from the record that the main thread made of the folder; it reads no file.
 */
import type { Clock } from '../../runtime/clock.js';
import type { TextModel } from '../text-model.js';
import { createIdEncoder, type EncoderKind, type IdEncoder } from '../tokenizers/hugging-face.js';
import { ChatTemplate } from './jinja-template.js';
import { folderError, type ModelFolder } from './model-folder.js';

function templateOf(folder: ModelFolder, clock: Pick<Clock, 'wallMs'>): ChatTemplate | null {
  if (folder.templates === null) return null;
  try {
    return new ChatTemplate({ sources: folder.templates, variables: folder.templateVariables, clock });
  } catch (error) {
    throw folderError(folder, 'chat template', error);
  }
}

async function encoderOf(folder: ModelFolder, kind: EncoderKind | undefined): Promise<IdEncoder> {
  try {
    const json = Buffer.from(new Uint8Array(folder.tokenizerJson)).toString('utf8');
    const encoder = await createIdEncoder(json, JSON.parse(folder.tokenizerConfig) as object, kind);
    for (const [text, id] of folder.specials) {
      const given = encoder.idOf(text);
      // The library numbers added tokens itself: a file with other numbers is not one that it wrote.
      if (given !== id) throw new Error(`added token "${text}" has the id ${id}, but it is read as ${given}`);
    }
    return encoder;
  } catch (error) {
    throw folderError(folder, 'tokenizer.json', error);
  }
}

/**
 * The ids that end an answer. The token that the template writes after an assistant's message is one of them, unless
 * generation_config.json names the ids: some formats end a message, but not the answer, with a token of their own.
 */
function eosIdsOf(folder: ModelFolder, template: ChatTemplate | null): Uint32Array {
  const ids = new Set(folder.eosIds);
  if (template !== null && !folder.eosIsComplete) {
    const token = template.endOfTurn(folder.specials.map(([text]) => text));
    const special = folder.specials.find(([text]) => text === token);
    if (special !== undefined) ids.add(special[1]);
  }
  return Uint32Array.from(ids);
}

/** Builds the model. Rejects with ConfigError that names the setting, the folder, the file and what is wrong. */
export async function loadFolderModel(
  folder: ModelFolder,
  clock: Pick<Clock, 'wallMs'>,
  kind?: EncoderKind,
): Promise<TextModel> {
  const template = templateOf(folder, clock);
  const encoder = await encoderOf(folder, kind);
  return {
    encoder: encoder.kind,
    vocabularySize: folder.vocabularySize,
    eosIds: eosIdsOf(folder, template),
    contextLength: folder.contextLength,
    rendersChat: template !== null,
    encodePrompt: text => encoder.encode(text, true),
    // The template writes the model's frame itself.
    encodeChat: messages => encoder.encode(template!.render(messages), false),
  };
}
