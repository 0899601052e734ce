// An adapter for an engine that Millrace does not know itself: LMDeploy's `api_server`. A module that `extensions:` names
// exports createEngineAdapter(tools); every thread that needs it imports the module anew, so it keeps no state of a request.
//   millrace serve --extension ./examples/lmdeploy-adapter.js --worker http://127.0.0.1:23333 --model-path ./model
// Token mode is its native POST /generate: ids in, `output_ids` of each step out. Everything else goes to its OpenAI routes.

/** What /generate takes beside the prompt; a request with a field that only the OpenAI routes take is relayed to those. */
const GENERATE_FIELDS = ['top_k', 'min_p', 'repetition_penalty', 'spaces_between_special_tokens'];
/** `max_tokens` of OpenAI's completions where the request has none; /generate would take 128. */
const COMPLETION_TOKENS = 16;

/** @type {import('millrace').EngineAdapterFactory} */
export function createEngineAdapter(tools) {
  return {
    engine: 'lmdeploy',
    modelOwner: 'lmdeploy',
    // The frames of /generate are its own; `openStream` reads them.
    hasOpenAiFrames: false,
    healthPath: '/health',
    metricsPath: '/metrics',
    probe,
    tokenize,
    // The route has no place for messages.
    sampleOf: ({ prompt, engineOnly }) =>
      prompt.kind === 'text' && engineOnly.length === 0 ? { prompt: prompt.text } : null,
    parseMetrics: page => ({
      running: sumOf(page, 'lmdeploy:num_requests_running'),
      waiting: sumOf(page, 'lmdeploy:num_requests_waiting'),
      kvUsage: sumOf(page, 'lmdeploy:gpu_cache_usage_perc'),
      prefixCacheQueries: null,
      prefixCacheHits: null,
    }),
    tokenModeGap,
    encode: input => (input.mode === 'token' ? encodeTokens(input) : encodeRelay(input)),
    // Closing the connection ends a request.
    abortCall: () => null,
    canary: () => post('/generate', { input_ids: [1], max_tokens: 1, stream: false }),
    openStream: (limits, mode) =>
      mode === 'token' ? tools.openTranslated(limits, new GenerateFrames()) : tools.openSse(limits),
  };
}

/** @type {import('millrace').EngineAdapter['probe']} */
async function probe(get) {
  const [models, engine] = await Promise.all(['/v1/models', '/distserve/engine_info'].map(get));
  if (models.status !== 200) throw new Error(`/v1/models answered ${models.status}, expected 200`);
  const { data } = JSON.parse(models.body);
  return {
    engine: 'lmdeploy',
    version: null,
    models: data.map(model => ({ id: model.id, contextLength: model.max_model_len ?? null })),
    ...readCache(engine),
    returnsTokenIds: true,
    answerModes: ['token', 'relay'],
    dpRanks: null,
    events: null,
    notices: [],
  };
}

/** The route answers the text of a JSON object as a JSON text; the TurboMind backend does not have it. */
function readCache({ status, body }) {
  const once = status === 200 ? JSON.parse(body) : {};
  const { block_size: size, num_gpu_blocks: blocks } = typeof once === 'string' ? JSON.parse(once) : once;
  return { blockSize: size > 0 ? size : null, totalBlocks: blocks > 0 ? blocks : null };
}

/** @type {import('millrace').EngineAdapter['tokenize']} */
async function tokenize(ask, _model, sample) {
  if (!('prompt' in sample)) return null;
  const body = { input: sample.prompt, do_preprocess: false, add_bos: true };
  const answer = await ask('/v1/encode', JSON.stringify(body));
  return answer.status === 200 ? Uint32Array.from(JSON.parse(answer.body).input_ids) : null;
}

/** @type {import('millrace').EngineAdapter['tokenModeGap']} */
function tokenModeGap({ sampling, output, unknown }) {
  if (output.logprobs !== null) return 'logprobs';
  if (sampling.n > 1) return 'n';
  if (sampling.seed !== undefined) return 'seed';
  return Object.keys(unknown).find(name => unknown[name] !== null && !GENERATE_FIELDS.includes(name)) ?? null;
}

/** @param {import('millrace').EncodeInput} input */
function encodeTokens({ request, promptIds, maxTokens, requestId }) {
  if (promptIds === null) throw new Error('token mode has prompt ids');
  const { sampling, stop, output, unknown } = request;
  const body = {
    ...unknown,
    input_ids: [...promptIds],
    max_tokens: maxTokens ?? COMPLETION_TOKENS,
    stream: true,
    temperature: sampling.temperature,
    top_p: sampling.topP,
    ignore_eos: stop.ignoreEos,
    // Stop texts are matched by Millrace, in its own text.
    stop: undefined,
    stop_token_ids: stop.tokenIds.length > 0 ? stop.tokenIds : undefined,
    // The server takes no model and refuses none.
    model: undefined,
  };
  return { ...post('/generate', body, requestId), usageInjected: !output.includeUsage, idsInjected: true };
}

/** @param {import('millrace').EncodeInput} input */
function encodeRelay({ request, workerModel, requestId }) {
  const { api, output, raw } = request;
  const usageInjected = output.stream && !output.includeUsage;
  const options = usageInjected ? { stream_options: { include_usage: true } } : {};
  const body = { ...raw, model: workerModel, ...options };
  const path = api === 'chat' ? '/v1/chat/completions' : '/v1/completions';
  return { ...post(path, body, requestId), usageInjected, idsInjected: false };
}

/** @returns {import('millrace').CanaryCall} */
function post(path, body, requestId) {
  /** @type {[string, string][]} */
  const head = [['content-type', 'application/json']];
  if (requestId !== undefined) head.push(['x-request-id', requestId]);
  return { method: 'POST', path, head, body: Buffer.from(JSON.stringify(body)) };
}

/**
 * The frames of one answer: `{"text", "output_ids": [what is new], "meta_info": {"prompt_tokens", "completion_tokens",
 * "finish_reason": null | {"type"}}}`, or `{"error": {…}}`.
 */
class GenerateFrames {
  /** @type {object | null} */
  #usage = null;
  #ids = 0;

  /** @param {Record<string, any>} frame */
  chunk({ error, output_ids: ids, meta_info: meta }) {
    if (error !== undefined) return { error };
    if (!Array.isArray(ids) || typeof meta !== 'object' || meta === null) return null;
    this.#ids += ids.length;
    this.#usage = {
      prompt_tokens: meta.prompt_tokens,
      completion_tokens: meta.completion_tokens ?? this.#ids,
    };
    const finish = meta.finish_reason;
    return { choices: [{ index: 0, token_ids: ids, ...(finish ? { finish_reason: finish.type } : {}) }] };
  }

  last() {
    return this.#usage === null ? null : { choices: [], usage: this.#usage };
  }
}

/** The sum of a family of a Prometheus page; null when it is not there, which is not 0. */
function sumOf(page, family) {
  const lines = page
    .split('\n')
    .filter(line => line.startsWith(`${family}{`) || line.startsWith(`${family} `));
  return lines.length === 0 ? null : lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
}
