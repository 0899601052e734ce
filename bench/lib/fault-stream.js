/**
 * One streamed request of the fault bench, seen as a client sees it: text, number of chunks, the longest pause between two of
 * them, the worker that the answer names, and whether it is whole. Owned by the bench; ends exactly once.
 */
import http from 'node:http';

const ERROR_CHARS_MAX = 300;

/** See the head of the file. Starts on construction. */
export class FaultStream {
  /** Frames that brought text. */
  chunks = 0;
  text = '';
  /** The worker that the answer began on, by its header; null before that. */
  worker = /** @type {string | null} */ (null);
  /** Longest pause between two chunks in milliseconds. */
  longestGapMs = 0;
  /** Why the answer is not whole; null for a good one, and as long as it runs. */
  error = /** @type {string | null} */ (null);
  ended = false;
  /** Resolves when the stream has ended, well or not. @type {Promise<void>} */
  done;

  #request;
  #lastAtMs = Number.NaN;
  #buffer = '';
  #sawDone = false;
  #finish = /** @type {string | null} */ (null);
  #resolveDone = () => {};
  /** @type {Array<{ chunks: number, resolve: () => void }>} */
  #waits = [];

  /**
   * @param {{ host: string, port: number }} target
   * @param {{ id: string, path: string, body: object }} ask  `id` is sent as `x-request-id`.
   */
  constructor({ host, port }, { id, path, body }) {
    this.id = id;
    this.done = new Promise(resolve => {
      this.#resolveDone = resolve;
    });
    const headers = { 'content-type': 'application/json', 'x-request-id': id };
    this.#request = http.request({ host, port, path, method: 'POST', headers, agent: false });
    this.#request.on('error', error => this.fail(`socket: ${error.message}`));
    this.#request.on('response', response => this.#answer(response));
    this.#request.end(JSON.stringify(body));
  }

  /** Resolves when the stream has had so many chunks, or has ended. @param {number} chunks @returns {Promise<void>} */
  reached(chunks) {
    if (this.ended || this.chunks >= chunks) return Promise.resolve();
    return new Promise(resolve => {
      this.#waits.push({ chunks, resolve });
    });
  }

  /** Ends the stream with an error and drops its connection; does nothing once it has ended. @param {string} reason */
  fail(reason) {
    this.#end(reason.slice(0, ERROR_CHARS_MAX));
  }

  /** @param {http.IncomingMessage} response */
  #answer(response) {
    this.worker = String(response.headers['x-millrace-worker'] ?? '');
    const isStream = response.statusCode === 200;
    let refusal = '';
    response.setEncoding('utf8');
    response.on('data', (/** @type {string} */ text) => {
      if (isStream) this.#read(text);
      else refusal = (refusal + text).slice(0, ERROR_CHARS_MAX);
    });
    response.on('error', error => this.fail(`socket: ${error.message}`));
    response.on('end', () => {
      if (!isStream) this.fail(`the answer was ${response.statusCode}: ${refusal}`);
      else if (!this.#sawDone) this.fail(`the answer ended without [DONE] after ${this.chunks} chunks`);
      else if (this.#finish === null) this.fail('the answer ended without a finish reason');
      else this.#end(null);
    });
    response.on('close', () => this.fail('the server closed the connection'));
  }

  /** @param {string} text */
  #read(text) {
    const nowMs = performance.now();
    const parts = (this.#buffer + text).split('\n\n');
    this.#buffer = parts.pop() ?? '';
    for (const part of parts) if (part.startsWith('data: ')) this.#frame(part.slice(6), nowMs);
    const due = this.#waits.filter(wait => wait.chunks <= this.chunks);
    if (due.length === 0) return;
    this.#waits = this.#waits.filter(wait => wait.chunks > this.chunks);
    for (const { resolve } of due) resolve();
  }

  /** @param {string} data @param {number} nowMs */
  #frame(data, nowMs) {
    if (this.ended) return;
    if (data === '[DONE]') {
      this.#sawDone = true;
      return;
    }
    const frame = parsed(data);
    if (frame === null) return this.fail(`after ${this.chunks} chunks: no JSON: ${data}`);
    if (frame.error !== undefined) {
      return this.fail(`after ${this.chunks} chunks: ${frame.error.code}: ${frame.error.message}`);
    }
    const choice = frame.choices?.[0];
    this.#finish = choice?.finish_reason ?? this.#finish;
    const text = choice?.text ?? choice?.delta?.content ?? '';
    if (text === '') return;
    if (this.chunks > 0) this.longestGapMs = Math.max(this.longestGapMs, nowMs - this.#lastAtMs);
    this.#lastAtMs = nowMs;
    this.chunks += 1;
    this.text += text;
  }

  /** @param {string | null} error */
  #end(error) {
    if (this.ended) return;
    this.ended = true;
    this.error = error;
    if (error !== null) this.#request.destroy();
    for (const { resolve } of this.#waits) resolve();
    this.#waits = [];
    this.#resolveDone();
  }
}

/** The value of a JSON text; null: it is none. @param {string} text */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
