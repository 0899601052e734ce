/**
 * A fake vLLM server for benches only: it answers with prepared frames, shaped byte for byte like vLLM's, and costs far less
 * CPU than the plane under test. It does no model work and checks little; tests use the mock engine of `src/simulate`.
 * Runs as a child process: prints `{"event":"listening","url":…}` and exits when its stdin closes.
 */
import { App, us_socket_local_port } from 'uWebSockets.js';
import { parseFlags } from './report.js';
import { TOKEN_IDS, WORDS } from './words.js';

/** The only model of the bench engine. */
const MODEL = 'bench-model';
const MAX_MODEL_LEN = 131_072;
const MAX_TOKENS = 100_000;
const BODY_BYTES_MAX = 8 << 20;
const CREATED = 1_760_000_000;

const flags = parseFlags({
  usage: 'node bench/lib/engine.js [flags]',
  summary: 'A cheap fake vLLM server that streams prepared frames to a bench. It ends when its stdin closes.',
  flags: {
    mode: {
      type: 'string',
      choices: ['paced', 'instant'],
      default: 'paced',
      help: 'paced: each stream gets one write per period; instant: a whole answer in one write',
    },
    'period-ms': {
      type: 'number',
      integer: true,
      min: 1,
      max: 1000,
      default: 20,
      help: 'paced: time between two writes',
    },
    'frames-per-write': {
      type: 'number',
      integer: true,
      min: 1,
      max: 32,
      default: 1,
      help: 'paced: tokens in one write',
    },
    ids: {
      type: 'string',
      choices: ['yes', 'no'],
      default: 'yes',
      help: 'no: plays a vLLM release that cannot return token ids',
    },
  },
  examples: [
    'node bench/lib/engine.js --mode paced --period-ms 20',
    'node bench/lib/engine.js --mode instant',
  ],
});

const returnsIds = flags.ids === 'yes';
/** Token ids came with vLLM 0.10.2. */
const VERSION = JSON.stringify({ version: returnsIds ? '0.11.0' : '0.10.1' });

const frame = (/** @type {string} */ json) => Buffer.from(`data: ${json}\n\n`);
const DONE = Buffer.from('data: [DONE]\n\n');

/**
 * The frames of one kind of answer; every stream of that kind shares them.
 * @param {boolean} chat  Chat completions, else completions.
 * @param {boolean} ids  The client asked for `return_token_ids`.
 * @param {boolean} usage  The client asked for `include_usage`.
 */
function buildFrames(chat, ids, usage) {
  const kind = chat ? 'chat.completion.chunk' : 'text_completion';
  const id = chat ? 'chatcmpl' : 'cmpl';
  const head = `{"id":"${id}-5f0c1d2e3a4b4c5d8e9f0a1b2c3d4e5f","object":"${kind}","created":${CREATED},"model":"${MODEL}","choices":`;
  const tail = usage ? ',"usage":null}' : '}';
  const token = (/** @type {number} */ i, /** @type {string} */ finish) => {
    const text = ` ${WORDS[i]}`;
    const content = chat ? `"delta":{"content":"${text}"}` : `"text":"${text}"`;
    const tokenIds = ids ? `,"token_ids":[${TOKEN_IDS[i]}]` : '';
    return frame(
      `${head}[{"index":0,${content},"logprobs":null,"finish_reason":${finish},"stop_reason":null${tokenIds}}]${tail}`,
    );
  };
  return {
    chat,
    usage,
    role: frame(
      `${head}[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]${tail}`,
    ),
    tokens: WORDS.map((_, i) => token(i, 'null')),
    lastTokens: WORDS.map((_, i) => token(i, '"length"')),
    /** @param {number} count @param {number} promptTokens */
    usageFrame: (count, promptTokens) =>
      frame(
        `${head}[],"usage":{"prompt_tokens":${promptTokens},"total_tokens":${promptTokens + count},"completion_tokens":${count}}}`,
      ),
  };
}

/** @typedef {ReturnType<typeof buildFrames>} Frames */

/** Indexed by chat * 4 + ids * 2 + usage. */
const FRAMES = Array.from({ length: 8 }, (_, i) => buildFrames((i & 4) !== 0, (i & 2) !== 0, (i & 1) !== 0));

/**
 * The value of a whole number after `"key":`, or -1. An exact scan: inside a JSON string the quotes would be escaped.
 * @param {Buffer} body @param {string} key
 */
function numberOf(body, key) {
  const at = body.indexOf(`"${key}":`);
  if (at < 0) return -1;
  let value = -1;
  for (let i = at + key.length + 3; i < body.length && value < MAX_TOKENS; i += 1) {
    const digit = body[i] - 48;
    if (digit >= 0 && digit <= 9) value = Math.max(value, 0) * 10 + digit;
    else if (value >= 0 || body[i] !== 32) break;
  }
  return value;
}

/** Prompt ids as the text between their brackets, or an empty text for a text prompt. @param {Buffer} body */
function promptIdsOf(body) {
  const at = body.indexOf('"prompt":[');
  return at < 0 ? '' : body.latin1Slice(at + 10, body.indexOf(93, at));
}

/** One answer being streamed. */
class Stream {
  /** @type {Buffer[]} the frames that the current turn writes */
  #turn = [];
  #sent = 0;
  blocked = false;
  closed = false;
  slot = -1;

  /** @param {any} res @param {Frames} frames @param {number} total @param {string} promptIds */
  constructor(res, frames, total, promptIds) {
    this.res = res;
    this.frames = frames;
    this.total = total;
    this.promptIds = promptIds;
  }

  /** Writes up to `count` further tokens in one send, and all that ends the answer after the last. @param {number} count */
  advance(count) {
    if (this.blocked || this.closed) return;
    const { frames, total } = this;
    if (this.#sent === 0 && frames.chat) this.#turn.push(frames.role);
    const until = Math.min(total, this.#sent + count);
    for (let k = this.#sent; k < until; k += 1) {
      const prepared = k === total - 1 ? frames.lastTokens : frames.tokens;
      this.#turn.push(k === 0 ? this.#withPromptIds(prepared[0]) : prepared[k % WORDS.length]);
    }
    if (until === total) {
      if (frames.usage) this.#turn.push(frames.usageFrame(total, this.#promptTokens()));
      this.#turn.push(DONE);
    }
    this.res.cork(this.#write);
    this.#sent = until;
    this.#turn.length = 0;
    if (until === total) this.closed = true;
  }

  // One HTTP chunk per frame, as the servers of stock engines write them; the cork joins them into one send.
  #write = () => {
    if (this.#sent === 0) this.res.writeHeader('content-type', 'text/event-stream; charset=utf-8');
    for (const bytes of this.#turn) {
      if (!this.res.write(bytes)) this.blocked = true;
    }
    if (this.#turn[this.#turn.length - 1] === DONE) this.res.end();
  };

  /** vLLM returns the prompt's ids in the first frame of a completion that asked for ids. @param {Buffer} first */
  #withPromptIds(first) {
    if (this.promptIds === '') return first;
    return Buffer.from(
      first.latin1Slice().replace('"token_ids"', `"prompt_token_ids":[${this.promptIds}],"token_ids"`),
    );
  }

  #promptTokens() {
    return this.promptIds === '' ? 1 : this.promptIds.split(',').length;
  }
}

/** Gives each stream its turn once per period, the streams spread evenly over it; a period that was missed is skipped. */
class Pacer {
  #done = 0;
  #started = performance.now();

  /** @param {number} periodMs @param {number} framesPerWrite */
  constructor(periodMs, framesPerWrite) {
    this.framesPerWrite = framesPerWrite;
    this.slots = Array.from({ length: periodMs }, () => /** @type {Set<Stream>} */ (new Set()));
    setInterval(() => this.#tick(), 1);
  }

  /** @param {Stream} stream */
  add(stream) {
    stream.slot = this.slots.reduce((best, slot, i) => (slot.size < this.slots[best].size ? i : best), 0);
    this.slots[stream.slot].add(stream);
  }

  /** Streams that are being answered. */
  get running() {
    return this.slots.reduce((sum, slot) => sum + slot.size, 0);
  }

  /** @param {Stream} stream */
  remove(stream) {
    if (stream.slot >= 0) this.slots[stream.slot].delete(stream);
  }

  #tick() {
    const now = Math.floor(performance.now() - this.#started);
    this.#done = Math.max(this.#done, now - this.slots.length);
    for (; this.#done < now; this.#done += 1) {
      for (const stream of this.slots[this.#done % this.slots.length]) {
        stream.advance(this.framesPerWrite);
        if (stream.closed) this.remove(stream);
      }
    }
  }
}

const pacer = flags.mode === 'paced' ? new Pacer(flags.periodMs, flags.framesPerWrite) : undefined;

/** @param {any} res @param {number} status @param {string} message */
function refuse(res, status, message) {
  res.cork(() => {
    res.writeStatus(`${status} Error`).writeHeader('content-type', 'application/json');
    res.end(JSON.stringify({ error: { message, type: 'BadRequestError', param: null, code: status } }));
  });
}

/** @param {any} res @param {boolean} chat @param {Buffer} body @returns {Stream | undefined} */
function start(res, chat, body) {
  const total = Math.max(numberOf(body, 'max_tokens'), numberOf(body, 'max_completion_tokens'));
  if (total < 1 || total > MAX_TOKENS || !body.includes('"stream":true')) {
    refuse(res, 400, `the bench engine needs "stream":true and max_tokens from 1 to ${MAX_TOKENS}`);
    return undefined;
  }
  const ids = returnsIds && body.includes('"return_token_ids":true');
  const usage = body.includes('"include_usage":true');
  const frames = FRAMES[Number(chat) * 4 + Number(ids) * 2 + Number(usage)];
  const stream = new Stream(res, frames, total, ids && !chat ? promptIdsOf(body) : '');
  res.onWritable(() => {
    stream.blocked = false;
    return true;
  });
  if (pacer) pacer.add(stream);
  else stream.advance(total);
  return stream;
}

/** @param {boolean} chat */
function generate(chat) {
  return (/** @type {any} */ res) => {
    /** @type {Buffer[]} */
    const parts = [];
    let bytes = 0;
    let aborted = false;
    /** @type {Stream | undefined} */
    let stream;
    res.onAborted(() => {
      aborted = true;
      if (!stream) return;
      stream.closed = true;
      pacer?.remove(stream);
    });
    res.onData((/** @type {ArrayBuffer} */ chunk, /** @type {boolean} */ last) => {
      if (aborted) return;
      bytes += chunk.byteLength;
      if (bytes > BODY_BYTES_MAX) {
        aborted = true;
        refuse(res, 413, `the body must be at most ${BODY_BYTES_MAX} bytes`);
      } else if (last) {
        const end = Buffer.from(chunk);
        stream = start(res, chat, parts.length === 0 ? end : Buffer.concat([...parts, end]));
      } else {
        parts.push(Buffer.from(chunk.slice(0))); // uWS takes the chunk's memory back after this call
      }
    });
  };
}

const metricsText = () =>
  [
    '# TYPE vllm:num_requests_running gauge',
    `vllm:num_requests_running{engine="0",model_name="${MODEL}"} ${pacer ? pacer.running : 0}`,
    '# TYPE vllm:num_requests_waiting gauge',
    `vllm:num_requests_waiting{engine="0",model_name="${MODEL}"} 0`,
    '# TYPE vllm:kv_cache_usage_perc gauge',
    `vllm:kv_cache_usage_perc{engine="0",model_name="${MODEL}"} 0`,
    '# TYPE vllm:cache_config_info gauge',
    'vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",engine="0",num_gpu_blocks="1048576"} 1',
    '',
  ].join('\n');

/** @param {string} type @param {() => string} text */
const page = (type, text) => (/** @type {any} */ res) => res.writeHeader('content-type', type).end(text());
const model = {
  id: MODEL,
  object: 'model',
  created: CREATED,
  owned_by: 'vllm',
  root: MODEL,
  max_model_len: MAX_MODEL_LEN,
};

App()
  .get(
    '/v1/models',
    page('application/json', () => JSON.stringify({ object: 'list', data: [model] })),
  )
  .get(
    '/version',
    page('application/json', () => VERSION),
  )
  .get(
    '/health',
    page('text/plain', () => ''),
  )
  .get('/metrics', page('text/plain; version=0.0.4', metricsText))
  .post('/v1/completions', generate(false))
  .post('/v1/chat/completions', generate(true))
  .any('/*', (/** @type {any} */ res) => res.writeStatus('404 Not Found').end('{"detail":"Not Found"}'))
  .listen('127.0.0.1', 0, (/** @type {any} */ token) => {
    if (!token) {
      process.stderr.write('the bench engine could not listen on 127.0.0.1\n');
      process.exit(1);
    }
    const url = `http://127.0.0.1:${us_socket_local_port(token)}`;
    process.stdout.write(`${JSON.stringify({ event: 'listening', url })}\n`);
  });

process.stdin.on('end', () => process.exit(0)).resume();
