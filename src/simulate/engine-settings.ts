/**
 * Settings of one mock engine, with their ranges and defaults (those of Dynamo's mocker and vLLM, where they have the
 * setting). Checked once, at start; `millrace mock` builds its flags from the same table. Read-only after that.
 */
import { ConfigError } from '../errors.js';

/** What shapes the behaviour of one simulated engine. */
export interface EngineSettings {
  /** KV blocks of the pool. */
  readonly numGpuBlocks: number;
  /** Tokens per KV block. */
  readonly blockSize: number;
  /** Prompt and output tokens of one request. Default: 32768, or what the pool holds when that is less. */
  readonly maxModelLen: number;
  /** Requests that run at one time. */
  readonly maxNumSeqs: number;
  /** Tokens that one pass computes at most. */
  readonly maxNumBatchedTokens: number;
  /** Tokens that a decoding sequence gains per pass: more than one as under speculative decoding with perfect drafts. */
  readonly tokensPerStep: number;
  /** Divides modelled time; 'unlimited': passes take no time. */
  readonly speed: number | 'unlimited';
  /** Probability of an end-of-sequence token at each position; 0: an answer always has `max_tokens` tokens. */
  readonly eosRate: number;
  /** Seeds the text: it is the same on every engine with this seed. */
  readonly seed: number;
}

interface Range {
  readonly min: number;
  readonly max: number;
  readonly default: number;
  readonly integer: boolean;
}

const integer = (min: number, max: number, value: number): Range => ({
  min,
  max,
  default: value,
  integer: true,
});
const real = (min: number, max: number, value: number): Range => ({
  min,
  max,
  default: value,
  integer: false,
});

/** Allowed range and default of each setting. */
export const ENGINE_SETTING_RANGES: Readonly<Record<keyof EngineSettings, Range>> = {
  numGpuBlocks: integer(1, 4_194_304, 16_384),
  blockSize: integer(1, 1024, 64),
  maxModelLen: integer(1, 16_777_216, 32_768),
  maxNumSeqs: integer(1, 65_536, 256),
  maxNumBatchedTokens: integer(1, 1_048_576, 8192),
  tokensPerStep: integer(1, 64, 1),
  speed: real(0.001, 1_000_000, 1),
  eosRate: real(0, 1, 0),
  seed: integer(0, 4_294_967_295, 0),
};

function checked(name: keyof EngineSettings, value: unknown): number {
  const range = ENGINE_SETTING_RANGES[name];
  const ok =
    typeof value === 'number' &&
    value >= range.min &&
    value <= range.max &&
    (!range.integer || Number.isInteger(value));
  if (ok) return value;
  const kind = range.integer ? 'an integer' : 'a number';
  const also = name === 'speed' ? ", or 'unlimited'" : '';
  throw new ConfigError(
    `${name} must be ${kind} from ${range.min} to ${range.max}${also}; got ${String(value)}`,
    {
      param: name,
    },
  );
}

/** Fills in the defaults and checks every range. Throws ConfigError, whose `param` is the setting. */
export function resolveEngineSettings(given: Partial<EngineSettings>): EngineSettings {
  const number = (name: keyof EngineSettings): number =>
    checked(name, given[name] ?? ENGINE_SETTING_RANGES[name].default);
  const numGpuBlocks = number('numGpuBlocks');
  const blockSize = number('blockSize');
  const capacityTokens = numGpuBlocks * blockSize;
  const maxModelLen =
    given.maxModelLen === undefined
      ? Math.min(ENGINE_SETTING_RANGES.maxModelLen.default, capacityTokens)
      : checked('maxModelLen', given.maxModelLen);
  // A longer request could never run to its end: alone in the pool it would preempt itself for ever.
  if (maxModelLen > capacityTokens)
    throw new ConfigError(
      `maxModelLen must be at most numGpuBlocks × blockSize = ${capacityTokens}; got ${maxModelLen}`,
      { param: 'maxModelLen' },
    );
  return Object.freeze({
    numGpuBlocks,
    blockSize,
    maxModelLen,
    maxNumSeqs: number('maxNumSeqs'),
    maxNumBatchedTokens: number('maxNumBatchedTokens'),
    tokensPerStep: number('tokensPerStep'),
    speed: given.speed === 'unlimited' ? 'unlimited' : number('speed'),
    eosRate: number('eosRate'),
    seed: number('seed'),
  });
}
