/**
 * The adapter for stock SGLang (R5): the native /generate in token mode, the OpenAI routes in relay mode. No I/O and no
 * state: `encode` runs on pool threads, the rest on socket threads. Closing the connection ends a request on both kinds
 * of route: each stream of the server has `create_abort_task` behind it (sglang/srt/entrypoints/http_server.py).
 */
import { strict as assert } from 'node:assert';
import type { TokenRequest } from '../messages/token-request.js';
import type { EngineAdapter, Poster, TokenizeSample } from './contract.js';
import { sglangControl } from './sglang-control.js';
import { encodeSglangCall, sglangAbortCall, sglangCanary, sglangTokenModeGap } from './sglang-encode.js';
import { parseSglangMetrics, probeSglang, SGLANG } from './sglang-probe.js';
import { openGenerateStream } from './sglang-stream.js';
import { openSseStream, type StreamScanner } from './stream-decoder.js';
import { tokenizeVllm } from './vllm-tokenize.js';

/** Parts of the adapter that belong to a thread. */
export interface SglangAdapterOptions {
  /** Frame scanner of this thread; `openStream` needs it, a pool thread does not. */
  readonly scanner?: StreamScanner;
}

/** Makes the adapter of one thread. */
export function createSglangAdapter(options: SglangAdapterOptions = {}): EngineAdapter {
  const { scanner } = options;
  return {
    engine: SGLANG,
    modelOwner: 'sglang',
    hasOpenAiFrames: false,
    healthPath: '/health',
    metricsPath: '/metrics',
    probe: probeSglang,
    tokenize: tokenizeSglang,
    sampleOf,
    parseMetrics: parseSglangMetrics,
    tokenModeGap: sglangTokenModeGap,
    encode: encodeSglangCall,
    control: sglangControl,
    canary: sglangCanary,
    abortCall: sglangAbortCall,
    openStream(limits, mode) {
      assert(scanner !== undefined, 'openStream needs an adapter that was made with a scanner');
      assert(mode !== undefined, 'the frames of /generate are others than those of the OpenAI routes');
      return mode === 'token' ? openGenerateStream(scanner, limits) : openSseStream(scanner, limits);
    },
  };
}

/** Its /tokenize takes and answers what vLLM's does for a prompt; chats only in trees of 2026, which is not known here. */
function tokenizeSglang(post: Poster, model: string, sample: TokenizeSample): Promise<Uint32Array | null> {
  return 'prompt' in sample ? tokenizeVllm(post, model, sample) : Promise.resolve(null);
}

function sampleOf({ prompt, raw, engineOnly }: TokenRequest): TokenizeSample | null {
  if (prompt.kind !== 'text' || engineOnly.includes('prompt_embeds')) return null;
  const special = raw.add_special_tokens;
  return {
    prompt: prompt.text,
    ...(typeof special === 'boolean' ? { shaping: { add_special_tokens: special } } : {}),
  };
}
