/**
 * A double of LMDeploy's api_server for the tests of the example adapter: the routes that it calls, with the bodies that the
 * server documents (lmdeploy/serve/openai/{api_server,protocol}.py). It answers every prompt with the same text, one token a
 * frame. Runs in the test's process and ends with the test.
 */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Test } from 'tap';
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';
import type { Tokenizer } from '#millrace/preprocess/tokenizers/tokenizer.js';

export const MODEL = 'internlm';
/** What it answers; its last characters take several tokens each. */
export const ANSWER = 'The answer in 東京 is 🦙🦙.';
const FRAME = 'text/event-stream';
const JSON_TYPE = 'application/json';

interface Body {
  readonly input_ids?: readonly number[];
  readonly input?: string;
  readonly max_tokens?: number;
  readonly stream?: boolean;
}

const frame = (value: object): string => `data: ${JSON.stringify(value)}\n\n`;

/** Frames of a /generate answer of at most `max` tokens. */
export function generateFrames(tokenizer: Tokenizer, promptTokens: number, max: number): string[] {
  const ids = [...tokenizer.encode(ANSWER)].slice(0, max);
  const isWhole = ids.length < max;
  const meta = (tokens: number, type: string | null): object => ({
    prompt_tokens: promptTokens,
    completion_tokens: tokens,
    finish_reason: type === null ? null : { type },
    output_token_logprobs: null,
  });
  const frames = ids.map((id, at) => {
    const isLast = at === ids.length - 1 && !isWhole;
    return frame({ text: '', output_ids: [id], meta_info: meta(at + 1, isLast ? 'length' : null) });
  });
  if (isWhole) frames.push(frame({ text: '', output_ids: [], meta_info: meta(ids.length, 'stop') }));
  return [...frames, 'data: [DONE]\n\n'];
}

const chatFrames = (): string[] => [
  ...['relayed ', 'text'].map(content =>
    frame({ choices: [{ index: 0, delta: { content }, finish_reason: null }] }),
  ),
  frame({ choices: [{ index: 0, delta: { content: '' }, finish_reason: 'stop' }] }),
  frame({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 } }),
  'data: [DONE]\n\n',
];

/** Its origin, and the routes of the streams that it was asked for. */
export interface LmdeployDouble {
  readonly url: string;
  readonly taken: string[];
}

/** Starts it. `tokenizer`: one of Millrace's own. */
export async function startLmdeployDouble(t: Test, name = 'chatml-cl100k'): Promise<LmdeployDouble> {
  const tokenizer = await loadTokenizer(name);
  const taken: string[] = [];
  const answer = (url: string, body: Body): [string, readonly string[]] | null => {
    if (url === '/health') return [JSON_TYPE, ['']];
    if (url === '/metrics')
      return ['text/plain', ['lmdeploy:num_requests_running{model_name="x",engine="0"} 2.0\n']];
    if (url === '/v1/models')
      return [JSON_TYPE, [JSON.stringify({ object: 'list', data: [{ id: MODEL, owned_by: 'lmdeploy' }] })]];
    // A text of JSON as JSON, as FastAPI gives what model_dump_json made.
    if (url === '/distserve/engine_info')
      return [JSON_TYPE, [JSON.stringify(JSON.stringify({ block_size: 64, num_gpu_blocks: 1000 }))]];
    if (url === '/v1/encode') {
      const ids = [...tokenizer.encode(body.input!)];
      return [JSON_TYPE, [JSON.stringify({ input_ids: ids, length: ids.length })]];
    }
    if (url === '/generate' && body.stream === true)
      return [FRAME, generateFrames(tokenizer, body.input_ids!.length, body.max_tokens ?? 128)];
    if (url === '/generate')
      return [JSON_TYPE, [JSON.stringify({ text: '', output_ids: [1], meta_info: {} })]];
    return url === '/v1/chat/completions' ? [FRAME, chatFrames()] : null;
  };
  const take = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const text = (await request.toArray()).join('');
    const body: Body = text === '' ? {} : JSON.parse(text);
    // A canary is not streamed.
    if (body.stream === true) taken.push(request.url!);
    const [type, parts] = answer(request.url!, body) ?? [null, []];
    response.writeHead(type === null ? 404 : 200, { 'content-type': type ?? JSON_TYPE });
    for (const part of parts) response.write(part);
    response.end();
  };
  const server = createServer((request, response) => void take(request, response)).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.close();
    server.closeAllConnections();
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, taken };
}
