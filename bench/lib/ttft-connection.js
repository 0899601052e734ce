/**
 * One keep-alive connection of the live replay: sends one streamed completion at a time over a raw socket, notes when the
 * first text and the end came, and reads the usage at the end. It parses no frame in between, as it must cost less CPU than
 * the plane: tokens are counted by the engine. Owned by the load generator.
 */
import net from 'node:net';

const FIRST_TEXT = /"text":"[^"]/;
const USAGE_FRAME = /^data: (\{.*"usage":\{.*\})\n\n/m;
const LAST_CHUNK = '\r\n0\r\n\r\n';
/** What is kept of an answer: more than its last frames. */
const TAIL_CHARS = 2048;

// Shared by every socket: the callback has consumed the bytes before the next read of any socket begins.
const readBuffer = Buffer.allocUnsafeSlow(65_536);

/**
 * @typedef {object} Answer
 * @property {string | null} error  Why the answer is not whole; null for a good one.
 * @property {number} firstAtMs  When its first text was read (`performance.now()`).
 * @property {number} endAtMs  When its last byte was read.
 * @property {number} promptTokens  By its usage, like the next two.
 * @property {number} completionTokens
 * @property {number} cachedTokens
 */

/** See the head of the file. */
export class StreamConnection {
  #socket = /** @type {net.Socket | null} */ (null);
  #host;
  #port;
  #onAnswer = /** @type {((answer: Answer) => void) | null} */ (null);
  #inBody = false;
  #firstAtMs = Number.NaN;
  #tail = '';

  /** @param {string} host @param {number} port */
  constructor(host, port) {
    this.#host = host;
    this.#port = port;
  }

  /** Sends a body; `onAnswer` is called exactly once, and the connection is free then. @param {Buffer} body @param {(answer: Answer) => void} onAnswer */
  send(body, onAnswer) {
    this.#onAnswer = onAnswer;
    this.#inBody = false;
    this.#firstAtMs = Number.NaN;
    this.#tail = '';
    const socket = this.#socket ?? this.#connect();
    const head = `POST /v1/completions HTTP/1.1\r\nhost: ${this.#host}:${this.#port}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n`;
    socket.cork();
    socket.write(head, 'latin1');
    socket.write(body);
    socket.uncork();
  }

  /** Drops the socket; a request in flight ends with an error. @param {string} reason */
  close(reason) {
    this.#socket?.destroy();
    this.#socket = null;
    this.#finish(reason);
  }

  #connect() {
    const callback = (/** @type {number} */ bytes) => {
      if (this.#socket === socket) this.#read(readBuffer.latin1Slice(0, bytes));
      return true;
    };
    const address = { host: this.#host, port: this.#port };
    const socket = net.connect({ ...address, noDelay: true, onread: { buffer: readBuffer, callback } });
    const lost = (/** @type {string} */ reason) => {
      if (this.#socket === socket) this.close(reason);
    };
    socket.on('error', error => lost(`socket: ${error.message}`));
    socket.on('close', () => lost('the server closed the connection'));
    this.#socket = socket;
    return socket;
  }

  /** @param {string} text */
  #read(text) {
    if (this.#onAnswer === null) return this.close('bytes without a request');
    let seen = this.#tail + text;
    if (!this.#inBody) {
      const end = seen.indexOf('\r\n\r\n');
      this.#tail = seen;
      if (end < 0) return;
      if (!seen.startsWith('HTTP/1.1 200')) return this.close(`the answer was ${seen.slice(9, 400)}`);
      this.#inBody = true;
      seen = seen.slice(end + 2);
    }
    if (Number.isNaN(this.#firstAtMs) && FIRST_TEXT.test(seen)) this.#firstAtMs = performance.now();
    this.#tail = seen.slice(-TAIL_CHARS);
    if (seen.endsWith(LAST_CHUNK)) this.#finish(null);
  }

  /** @param {string | null} error */
  #finish(error) {
    const onAnswer = this.#onAnswer;
    if (onAnswer === null) return;
    this.#onAnswer = null;
    const frame = USAGE_FRAME.exec(this.#tail)?.[1];
    const usage = frame === undefined ? null : JSON.parse(frame).usage;
    const whole = usage !== null && this.#tail.includes('data: [DONE]') && this.#firstAtMs > 0;
    onAnswer({
      error: error ?? (whole ? null : `the answer is not whole: …${this.#tail.slice(-400)}`),
      firstAtMs: this.#firstAtMs,
      endAtMs: performance.now(),
      promptTokens: usage?.prompt_tokens ?? 0,
      completionTokens: usage?.completion_tokens ?? 0,
      cachedTokens: usage?.prompt_tokens_details?.cached_tokens ?? 0,
    });
  }
}
