/**
 * A whole answer of an engine as the frames of a stream (R5, socket thread): for a request that waits for a stream and was
 * answered in one piece. Pure.
 */
import type { Api } from '../../messages/token-request.js';
import { fieldsOf, findField, firstItem, replaceRange } from './json-bytes.js';

/** `answer`: valid JSON of OpenAI's unary form, one choice. */
export function answerFrames(answer: Uint8Array, api: Api): Buffer {
  let body: Uint8Array = answer;
  if (api === 'chat') {
    const choices = findField(fieldsOf(body), 'choices');
    const choiceAt = choices === null ? null : firstItem(body, choices.valueStart);
    const message = choiceAt === null ? null : findField(fieldsOf(body, choiceAt), 'message');
    if (message !== null)
      body = replaceRange(body, message.start, message.valueStart, Buffer.from('"delta":'));
    const object = findField(fieldsOf(body), 'object');
    if (object !== null)
      body = replaceRange(body, object.valueStart, object.valueEnd, Buffer.from('"chat.completion.chunk"'));
  }
  // A frame ends with its line: line breaks between the tokens of the JSON text would end it early.
  const line = Buffer.from(body).map(byte => (byte === 0x0a || byte === 0x0d ? 0x20 : byte));
  return Buffer.concat([Buffer.from('data: '), line, Buffer.from('\n\ndata: [DONE]\n\n')]);
}
