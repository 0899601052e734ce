/**
 * One keep-alive connection of the load generator: sends one streamed chat request at a time over a raw socket and reads the
 * answer with the least work that still proves it whole. It must cost less CPU than the plane, so it parses no JSON: the
 * bench vocabulary brings one space per token (bench/lib/words.js), and the end is the exact bytes of `[DONE]` and the last chunk.
 */
import net from 'node:net';
import { promptText } from './words.js';

const SPACE = 32;
const COLON = 58;
const HEAD_BYTES_MAX = 16_384;
const END = '[DONE]\n\n\r\n0\r\n\r\n';

// Shared by every socket: the callback has consumed the bytes before the next read of any socket begins.
const readBuffer = Buffer.allocUnsafeSlow(65_536);

let serial = 0;

/**
 * The bytes of one chat request with a prompt that no earlier request of this process had.
 * @param {{ host: string, port: number, model: string }} target
 * @param {number} promptTokens
 * @param {number} maxTokens
 */
function chatRequest(target, promptTokens, maxTokens) {
  serial += 1;
  const content = promptText(promptTokens, serial);
  const body = `{"model":"${target.model}","stream":true,"max_tokens":${maxTokens},"messages":[{"role":"user","content":"${content}"}]}`;
  return `POST /v1/chat/completions HTTP/1.1\r\nhost: ${target.host}:${target.port}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
}

/**
 * @typedef {object} Answer
 * @property {string | undefined} error  Why the answer is not whole; undefined for a good one.
 * @property {number} ttftMs  From the write of the request to the read that held the first token; NaN without one.
 */

/** A connection; the caller sends the next request after `onAnswer` of the one before. */
export class Connection {
  /** Watchdog turns without a byte while an answer is due; the owner raises it, every read clears it. */
  idleTurns = 0;
  /** An answer is due. */
  busy = false;

  #socket;
  #target;
  #onAnswer;
  #onTokens;
  #expected = 0;
  #tokens = 0;
  #sentAt = 0;
  #ttftMs = Number.NaN;
  #head = '';
  #inBody = false;
  #previous = 0;
  #tail = '';

  /**
   * @param {{ host: string, port: number, model: string }} target
   * @param {(answer: Answer) => void} onAnswer  Exactly once per `send`.
   * @param {(count: number, ttftMs: number | undefined) => void} onTokens  At every read that held tokens; with the TTFT
   *   at the first of an answer.
   */
  constructor(target, onAnswer, onTokens) {
    this.#target = target;
    this.#onAnswer = onAnswer;
    this.#onTokens = onTokens;
  }

  /** @param {number} promptTokens @param {number} maxTokens  Tokens that the answer must hold. */
  send(promptTokens, maxTokens) {
    this.#expected = maxTokens;
    this.#tokens = 0;
    this.#ttftMs = Number.NaN;
    this.#head = '';
    this.#inBody = false;
    this.#previous = 0;
    this.#tail = '';
    this.idleTurns = 0;
    this.busy = true;
    const request = chatRequest(this.#target, promptTokens, maxTokens);
    const socket = this.#socket ?? this.#connect();
    this.#sentAt = performance.now();
    socket.write(request, 'latin1');
  }

  /** Ends the request in flight, if any, with an error and drops the socket. @param {string} reason */
  fail(reason) {
    this.#socket?.destroy();
    this.#socket = undefined;
    this.#finish(reason);
  }

  #connect() {
    const { host, port } = this.#target;
    const callback = (/** @type {number} */ bytes) => {
      if (this.#socket === socket) this.#read(bytes);
      return true;
    };
    const socket = net.connect({ host, port, noDelay: true, onread: { buffer: readBuffer, callback } });
    const lost = (/** @type {string} */ reason) => {
      if (this.#socket === socket) this.fail(reason);
    };
    socket.on('error', error => lost(`socket: ${error.message}`));
    socket.on('close', () => lost('the server closed the connection'));
    this.#socket = socket;
    return socket;
  }

  /** @param {number} bytes  Length of what `readBuffer` holds. */
  #read(bytes) {
    this.idleTurns = 0;
    if (!this.busy) return this.fail('bytes without a request');
    const from = this.#inBody ? 0 : this.#readHead(bytes);
    if (from < 0) return;
    let previous = this.#previous;
    let found = 0;
    for (let i = from; i < bytes; i += 1) {
      const byte = readBuffer[i];
      if (byte === SPACE && previous !== COLON) found += 1; // the space of `data: ` follows a colon
      previous = byte;
    }
    this.#previous = previous;
    if (found > 0) {
      const first = this.#tokens === 0;
      if (first) this.#ttftMs = performance.now() - this.#sentAt;
      this.#tokens += found;
      this.#onTokens(found, first ? this.#ttftMs : undefined);
    }
    const room = END.length;
    const last = readBuffer.latin1Slice(Math.max(from, bytes - room), bytes);
    this.#tail = last.length === room ? last : (this.#tail + last).slice(-room);
    if (this.#tail === END) {
      const whole = this.#tokens === this.#expected;
      this.#finish(whole ? undefined : `the answer held ${this.#tokens} of ${this.#expected} tokens`);
    } else if (this.#tail.endsWith('\r\n0\r\n\r\n')) {
      this.fail('the answer ended without [DONE]');
    }
  }

  /** Where the body begins in `readBuffer`, or -1. @param {number} bytes */
  #readHead(bytes) {
    const known = this.#head.length;
    this.#head += readBuffer.latin1Slice(0, bytes);
    const end = this.#head.indexOf('\r\n\r\n');
    if (end < 0) {
      if (this.#head.length > HEAD_BYTES_MAX) this.fail('the response head is too long');
      return -1;
    }
    if (!this.#head.startsWith('HTTP/1.1 200')) {
      this.fail(`the answer was ${this.#head.slice(9, 12)}: ${this.#head.slice(end + 4, end + 304)}`);
      return -1;
    }
    this.#inBody = true;
    this.#head = '';
    return end + 4 - known;
  }

  /** @param {string | undefined} error */
  #finish(error) {
    if (!this.busy) return;
    this.busy = false;
    this.#onAnswer({ error, ttftMs: this.#ttftMs });
  }
}
