/** Settings of a mock engine's KV connector, with their ranges and defaults. Checked once, at start; read-only after that. */
import { ConfigError } from '../../errors.js';

/** nixl: prefill, then decode, which pulls. mooncake: both at once, and decode waits for its prefill. */
export const KV_CONNECTORS = ['nixl', 'mooncake'] as const;

/** See KV_CONNECTORS. */
export type KvConnectorKind = (typeof KV_CONNECTORS)[number];

/** vLLM's `kv_load_failure_policy`: the request ends with an error, or the engine computes the prompt itself. */
export const LOAD_FAILURE_POLICIES = ['fail', 'recompute'] as const;

/** See LOAD_FAILURE_POLICIES. */
export type LoadFailurePolicy = (typeof LOAD_FAILURE_POLICIES)[number];

/** What a server is started for, where that is not up to each request. */
export const DISAGG_ROLES = ['both', 'prefill', 'decode'] as const;

/** See DISAGG_ROLES. */
export type DisaggRole = (typeof DISAGG_ROLES)[number];

/** What shapes the hand-over of KV. Times are modelled: the engine's `speed` divides them. */
export interface DisaggSettings {
  /** Of a mock that plays vLLM. */
  readonly connector: KvConnectorKind;
  /** Of a mock that plays SGLang. */
  readonly role: DisaggRole;
  readonly loadFailure: LoadFailurePolicy;
  /** How long blocks stay pinned without a word from the decode side, in milliseconds. */
  readonly leaseMs: number;
  /** How long a pull may take, waiting for its prefill included, in milliseconds. */
  readonly pullDeadlineMs: number;
  /** Modelled KV of one token, in bytes. */
  readonly kvBytesPerToken: number;
  /** Modelled bandwidth of a pull, in bytes per second. */
  readonly kvBytesPerSecond: number;
}

/** Allowed range and default of each number. */
export const DISAGG_RANGES = {
  leaseMs: { min: 1, max: 3_600_000, default: 30_000 },
  pullDeadlineMs: { min: 1, max: 3_600_000, default: 30_000 },
  // Eight KV heads of 128 in 32 layers of 16-bit numbers.
  kvBytesPerToken: { min: 1, max: 16_777_216, default: 131_072 },
  kvBytesPerSecond: { min: 1000, max: 1e13, default: 25e9 },
} as const;

function oneOf<Name extends string>(param: string, value: Name, names: readonly Name[]): Name {
  if (names.includes(value)) return value;
  throw new ConfigError(`disagg.${param} must be one of ${names.join(', ')}; got '${String(value)}'`, {
    param: `disagg.${param}`,
  });
}

/** Fills in the defaults and checks every range. Throws ConfigError, whose `param` is the setting. */
export function resolveDisaggSettings(given: Partial<DisaggSettings>): DisaggSettings {
  const number = (name: keyof typeof DISAGG_RANGES): number => {
    const { min, max, default: standard } = DISAGG_RANGES[name];
    const value = given[name] ?? standard;
    if (Number.isInteger(value) && value >= min && value <= max) return value;
    throw new ConfigError(`disagg.${name} must be an integer from ${min} to ${max}; got ${String(value)}`, {
      param: `disagg.${name}`,
    });
  };
  return Object.freeze({
    connector: oneOf('connector', given.connector ?? 'nixl', KV_CONNECTORS),
    role: oneOf('role', given.role ?? 'both', DISAGG_ROLES),
    loadFailure: oneOf('loadFailure', given.loadFailure ?? 'fail', LOAD_FAILURE_POLICIES),
    leaseMs: number('leaseMs'),
    pullDeadlineMs: number('pullDeadlineMs'),
    kvBytesPerToken: number('kvBytesPerToken'),
    kvBytesPerSecond: number('kvBytesPerSecond'),
  });
}
