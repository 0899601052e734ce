/**
 * Chat messages → prompt ids in the ChatML form (R3, pool thread; the mock engine uses it too). Special tokens come from
 * this template alone: each text is encoded on its own as plain text, so that a user who writes `<|im_start|>` gets
 * those characters and no new turn. Pure.
 *
 *     <|im_start|>{role}[ name={name}]\n{text}<|im_end|>\n   per message, then   <|im_start|>assistant\n
 */
import assert from 'node:assert';
import type { ChatMessage } from '../messages/token-request.js';
import type { Tokenizer } from './tokenizers/tokenizer.js';

function requireSpecial(tokenizer: Tokenizer, text: string): number {
  const id = tokenizer.specialId(text);
  assert(id !== undefined, `the tokenizer ${tokenizer.name} has no token ${text}`);
  return id;
}

/**
 * Prompt ids of a chat, ending where the assistant's answer begins. Media is not rendered: requests that hold it go in
 * relay mode. Asserts that the tokenizer has ChatML's special tokens.
 */
export function renderChat(tokenizer: Tokenizer, messages: readonly ChatMessage[]): Uint32Array {
  const turnStart = requireSpecial(tokenizer, '<|im_start|>');
  const turnEnd = requireSpecial(tokenizer, '<|im_end|>');
  const newline = tokenizer.encode('\n');
  const answerHead = tokenizer.encode('assistant\n');
  const turns = messages.map(message => {
    const name = message.name === undefined ? '' : ` name=${message.name}`;
    return tokenizer.encode(`${message.role}${name}\n${message.text}`);
  });
  let length = 1 + answerHead.length;
  for (const turn of turns) length += turn.length + 2 + newline.length;
  const ids = new Uint32Array(length);
  let at = 0;
  for (const turn of turns) {
    ids[at++] = turnStart;
    ids.set(turn, at);
    at += turn.length;
    ids[at++] = turnEnd;
    ids.set(newline, at);
    at += newline.length;
  }
  ids[at++] = turnStart;
  ids.set(answerHead, at);
  return ids;
}
