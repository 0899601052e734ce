/** Plain HTTP client for tests of the mock engine's surface: whole answers, parsed SSE frames and broken streams. */

/** A parsed body or frame. */
// biome-ignore lint/suspicious/noExplicitAny: bodies and frames are read as the JSON of another program
export type Json = any;

/** A parsed SSE answer: `frames` are the JSON of each `data:` line before the end marker. */
export interface SseAnswer {
  status: number;
  frames: Json[];
  done: boolean;
  /** The connection broke before the answer ended. */
  broken: boolean;
  /** Bytes after the last complete frame. */
  rest: string;
}

const jsonHeaders = { 'content-type': 'application/json' };

/** POSTs a JSON body. */
export function post(url: string, path: string, body: unknown, signal?: AbortSignal): Promise<Response> {
  const init = { method: 'POST', headers: jsonHeaders, body: JSON.stringify(body) };
  return fetch(url + path, signal === undefined ? init : { ...init, signal });
}

/** POSTs a body and parses the whole answer. */
export async function postJson(
  url: string,
  path: string,
  body: unknown,
): Promise<{ status: number; json: Json }> {
  const response = await post(url, path, body);
  return { status: response.status, json: await response.json() };
}

/** POSTs a body with `stream: true` and reads the answer to its end, however it ends. */
export async function postSse(url: string, path: string, body: object): Promise<SseAnswer> {
  const answer: SseAnswer = { status: 0, frames: [], done: false, broken: false, rest: '' };
  try {
    const response = await post(url, path, { ...body, stream: true });
    answer.status = response.status;
    const decoder = new TextDecoder();
    for await (const bytes of response.body!) answer.rest += decoder.decode(bytes, { stream: true });
  } catch {
    answer.broken = true;
  }
  const parts = answer.rest.split('\n\n');
  answer.rest = parts.pop()!;
  for (const part of parts.filter(one => one.startsWith('data: '))) {
    if (part === 'data: [DONE]') answer.done = true;
    else answer.frames.push(JSON.parse(part.slice(6)));
  }
  return answer;
}
