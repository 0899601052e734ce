/**
 * The load generator of the live replay, forked by bench/lib/ttft-run.js and driven by messages. `prepare` makes the bodies
 * of all requests and checks that the plane's tokenizer gives back their ids; `run` sends each at its own moment, whatever
 * is still unanswered (open loop), and answers with what came back. It ends when its parent does.
 */
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';
import { StreamConnection } from './ttft-connection.js';
import { watchLag } from './ttft-lag.js';
import { idsOf, textOf } from './ttft-prompts.js';

const ERROR_EXAMPLES_MAX = 5;
/** Time for the message that announces a run to have been dealt with everywhere. */
const LEAD_MS = 200;

/** @typedef {import('#millrace/simulate/replay/workload.js').WorkloadRequest} WorkloadRequest */

const lag = watchLag();
/** @type {readonly WorkloadRequest[]} */
let requests = [];
/** @type {Buffer[]} */
let bodies = [];

/** @param {string} model @param {string} prompt @param {number} maxTokens */
function bodyOf(model, prompt, maxTokens) {
  const fields = `"stream":true,"stream_options":{"include_usage":true},"temperature":0`;
  return Buffer.from(
    `{"model":"${model}",${fields},"max_tokens":${maxTokens},"prompt":"${prompt}"}`,
    'latin1',
  );
}

/** @param {{ model: string, tokenizer: string, traceBlockTokens: number, requests: readonly WorkloadRequest[] }} message */
async function prepare(message) {
  const tokenizer = await loadTokenizer(message.tokenizer);
  requests = message.requests;
  bodies = requests.map((request, at) => {
    const text = textOf(request, message.traceBlockTokens);
    const ids = idsOf(request, message.traceBlockTokens);
    const encoded = tokenizer.encode(text);
    if (encoded.length !== ids.length || encoded.some((id, i) => id !== ids[i]))
      throw new Error(`request ${at}: the tokenizer does not give back the ids that the prompt was made of`);
    return bodyOf(message.model, text, request.outputTokens);
  });
  return { bytes: bodies.reduce((sum, { length }) => sum + length, 0) };
}

/** Times of a run: NaN for a request without a whole answer. @param {number} count */
function emptyRecord(count) {
  const times = () => new Float64Array(count).fill(Number.NaN);
  return {
    ttftMs: times(),
    itlMs: times(),
    e2eMs: times(),
    errors: 0,
    errorExamples: /** @type {string[]} */ ([]),
    outputTokens: 0,
    promptTokens: 0,
    cachedTokens: 0,
    spanMs: 0,
    lagP99Ms: 0,
  };
}

/**
 * Sends every request at its time and resolves when all have an answer. Times of the record are milliseconds of the wall,
 * from the moment at which a request was due.
 * @param {{ host: string, port: number, wallMsPerTraceMs: number }} message
 */
function run({ host, port, wallMsPerTraceMs }) {
  const record = emptyRecord(requests.length);
  /** @type {StreamConnection[]} */
  const idle = [];
  const firstMs = requests[0].arrivalMs;
  const startMs = performance.now() + LEAD_MS;
  const dueMs = (/** @type {number} */ at) => startMs + (requests[at].arrivalMs - firstMs) * wallMsPerTraceMs;
  let next = 0;
  let open = requests.length;
  lag.reset();
  return new Promise(resolve => {
    const answered = (
      /** @type {number} */ at,
      /** @type {StreamConnection} */ connection,
      /** @type {import('./ttft-connection.js').Answer} */ answer,
    ) => {
      idle.push(connection);
      noteAnswer(record, at, dueMs(at), answer);
      open -= 1;
      if (open > 0) return;
      record.spanMs = performance.now() - startMs;
      for (const connection of idle) connection.close('the run is over');
      resolve(record);
    };
    const sendDue = () => {
      while (next < requests.length && dueMs(next) <= performance.now()) {
        const at = next++;
        const connection = idle.pop() ?? new StreamConnection(host, port);
        connection.send(bodies[at], answer => answered(at, connection, answer));
      }
      if (next < requests.length) setTimeout(sendDue, Math.max(0, dueMs(next) - performance.now()));
      else record.lagP99Ms = lag.p99Ms();
    };
    setTimeout(sendDue, LEAD_MS);
  });
}

/**
 * @param {ReturnType<typeof emptyRecord>} record
 * @param {number} at
 * @param {number} dueMs
 * @param {import('./ttft-connection.js').Answer} answer
 */
function noteAnswer(record, at, dueMs, answer) {
  const { promptTokens, outputTokens } = requests[at];
  const { completionTokens, firstAtMs, endAtMs } = answer;
  const right = answer.promptTokens === promptTokens && completionTokens === outputTokens;
  const counts = `usage ${answer.promptTokens} + ${completionTokens}, not ${promptTokens} + ${outputTokens}`;
  const error = answer.error ?? (right ? null : counts);
  if (error !== null) {
    record.errors += 1;
    if (record.errorExamples.length < ERROR_EXAMPLES_MAX)
      record.errorExamples.push(`request ${at}: ${error}`);
    return;
  }
  record.ttftMs[at] = firstAtMs - dueMs;
  record.e2eMs[at] = endAtMs - dueMs;
  if (completionTokens > 1) record.itlMs[at] = (endAtMs - firstAtMs) / (completionTokens - 1);
  record.outputTokens += completionTokens;
  record.promptTokens += answer.promptTokens;
  record.cachedTokens += answer.cachedTokens;
}

process.on('message', async (/** @type {any} */ message) => {
  try {
    process.send?.(message.type === 'prepare' ? await prepare(message) : await run(message));
  } catch (error) {
    process.send?.({ failed: error instanceof Error ? error.message : String(error) });
  }
});
process.on('disconnect', () => process.exit(0));
