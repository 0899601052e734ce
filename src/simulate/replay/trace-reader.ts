/**
 * Reads a trace in Mooncake's form (kvcache-ai/Mooncake, FAST25-release): one JSON object per line with `timestamp` in
 * milliseconds, `input_length`, `output_length` and `hash_ids`, one prefix-unique id for each 512 tokens. Errors name the
 * line. Only the command `millrace replay` runs it.
 */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { ConfigError } from '../../errors.js';
import type { Workload, WorkloadRequest } from './workload.js';

/** Tokens per hash id in the public Mooncake traces. */
export const TRACE_BLOCK_TOKENS = 512;
/** Most requests of one replay. */
export const TRACE_REQUESTS_MAX = 1_000_000;
const PROMPT_TOKENS_MAX = 16_000_000;
const OUTPUT_TOKENS_MAX = 1_000_000;

/** Reads the first `requestsMax` requests. Throws ConfigError for a file or a line that is not right. */
export async function readTrace(path: string, requestsMax: number): Promise<Workload> {
  const requests: WorkloadRequest[] = [];
  const input = createReadStream(path);
  const lines = createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY });
  let line = 0;
  try {
    for await (const text of lines) {
      line += 1;
      if (text.trim() === '') continue;
      const request = readLine(text, `${path}:${line}`);
      const before = requests.at(-1);
      if (before !== undefined && request.arrivalMs < before.arrivalMs)
        throw new ConfigError(`${path}:${line}: timestamp must not be before that of the line above`);
      requests.push(request);
      if (requests.length === requestsMax) break;
    }
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    throw new ConfigError(`the trace ${path} cannot be read: ${(error as Error).message}`, { cause: error });
  } finally {
    lines.close();
    input.destroy();
  }
  if (requests.length < 2 || requests.at(-1)!.arrivalMs === requests[0]!.arrivalMs)
    throw new ConfigError(`${path}: a trace has at least 2 requests, and the last comes after the first`);
  return { name: 'trace', traceBlockTokens: TRACE_BLOCK_TOKENS, requests, joinsAtShare: null };
}

function readLine(text: string, where: string): WorkloadRequest {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`${where}: not a JSON object: ${(cause as Error).message}`, { cause });
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value))
    throw new ConfigError(`${where}: not a JSON object`);
  const fields = value as Record<string, unknown>;
  const arrivalMs = fields.timestamp;
  if (typeof arrivalMs !== 'number' || !(arrivalMs >= 0 && arrivalMs <= Number.MAX_SAFE_INTEGER))
    throw new ConfigError(`${where}: timestamp must be a number of milliseconds, 0 or more`);
  const promptTokens = tokens(fields.input_length, `${where}: input_length`, PROMPT_TOKENS_MAX);
  const outputTokens = tokens(fields.output_length, `${where}: output_length`, OUTPUT_TOKENS_MAX);
  const hashIds = fields.hash_ids;
  const isId = (id: unknown): boolean => Number.isSafeInteger(id) && (id as number) >= 0;
  if (!Array.isArray(hashIds) || !hashIds.every(isId))
    throw new ConfigError(`${where}: hash_ids must be an array of whole numbers, 0 or more`);
  const needed = Math.ceil(promptTokens / TRACE_BLOCK_TOKENS);
  if (hashIds.length !== needed)
    throw new ConfigError(
      `${where}: hash_ids must have ${needed} ids for ${promptTokens} tokens; it has ${hashIds.length}`,
    );
  return { arrivalMs, promptTokens, outputTokens, hashIds };
}

function tokens(value: unknown, where: string, max: number): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= 1 && value <= max) return value;
  throw new ConfigError(`${where} must be a whole number from 1 to ${max}`);
}
