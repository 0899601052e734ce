/**
 * Settings of prefill and decode workers (R4, R5): the role of a worker and where its KV is fetched, and
 * `models.<name>.disaggregation`. Pure; `worker-config.ts` and `config.ts` read these parts through this file.
 */
import { ConfigError } from './errors.js';
import {
  DISAGG_POLICIES,
  DISAGG_PROTOCOLS,
  type DisaggProtocolName,
  type DisaggRules,
  WORKER_ROLES,
  type WorkerRole,
} from './messages/disagg.js';
import { nearestName } from './runtime/nearest-name.js';

/** Of a model. `auto`: the protocol of the engine that its prefill workers run. */
export interface DisaggConfig extends DisaggRules {
  readonly protocol: DisaggProtocolName | 'auto';
}

/** Port of the bootstrap servers of vLLM with Mooncake and of SGLang, where it is not set. */
export const BOOTSTRAP_PORT = 8998;
const TEXT_CHARS_MAX = 1024;
const BOOTSTRAP = /^(?:\[([\da-fA-F:.]+)\]|([^\s:/[\]]+)):(\d{1,5})$/;

const shown = (raw: unknown): string => JSON.stringify(raw) ?? String(raw);

function wrong(source: string, raw: unknown, allowed: string): ConfigError {
  return new ConfigError(`${source} is ${shown(raw)}; allowed: ${allowed}`);
}

/** The role of a worker. Throws ConfigError. */
export function workerRole(raw: unknown, source: string): WorkerRole {
  const role = WORKER_ROLES.find(name => name === raw);
  if (role === undefined) throw wrong(source, raw, WORKER_ROLES.join(', '));
  return role;
}

/** A host and port as decode workers reach them: `host:port`, `[address]:port`. Throws ConfigError. */
export function bootstrapAddress(raw: unknown, source: string): string {
  const port = typeof raw === 'string' ? Number(BOOTSTRAP.exec(raw)?.[3] ?? 0) : 0;
  if (port >= 1 && port <= 65_535) return raw as string;
  throw wrong(source, raw, 'host:port of a bootstrap server, an IPv6 address in brackets');
}

/** Host without brackets and port of a checked address; of a worker at `url` that names none, with the port that it tells. */
export function bootstrapOf(
  address: string | null,
  url: string,
  toldPort: number | null = null,
): { readonly host: string; readonly port: number } {
  const match = address === null ? null : BOOTSTRAP.exec(address);
  if (match !== null) return { host: match[1] ?? match[2]!, port: Number(match[3]) };
  return { host: new URL(url).hostname.replace(/^\[|\]$/g, ''), port: toldPort ?? BOOTSTRAP_PORT };
}

/** Text that an engine gave. Throws ConfigError. */
export function engineText(raw: unknown, source: string): string {
  if (typeof raw === 'string' && raw.length > 0 && raw.length <= TEXT_CHARS_MAX) return raw;
  throw wrong(source, raw, `a text of 1 to ${TEXT_CHARS_MAX} characters`);
}

/** A number in a range; null: a whole one. */
const number =
  (min: number, max: number, isWhole = false) =>
  (raw: unknown, source: string): number => {
    if (typeof raw === 'number' && raw >= min && raw <= max && (!isWhole || Number.isInteger(raw)))
      return raw;
    throw wrong(source, raw, `${isWhole ? 'an integer' : 'a number'} from ${min} to ${max}`);
  };

const name =
  <Name extends string>(names: readonly Name[]) =>
  (raw: unknown, source: string): Name => {
    const known = names.find(one => one === raw);
    if (known === undefined) throw wrong(source, raw, names.join(', '));
    return known;
  };

const TOKENS_MAX = 1_000_000_000;

/** Default and check of each setting. */
const SETTINGS: {
  readonly [Key in keyof DisaggConfig]: readonly [
    DisaggConfig[Key],
    (raw: unknown, source: string) => DisaggConfig[Key],
  ];
} = {
  protocol: ['auto', name(['auto', ...DISAGG_PROTOCOLS])],
  policy: ['cost', name(DISAGG_POLICIES)],
  effIslMax: [2048, number(0, TOKENS_MAX, true)],
  effIslRatioMax: [0.7, number(0, 1)],
  prefillBusyTokens: [65_536, number(0, TOKENS_MAX, true)],
  decodeKvBusy: [0.9, number(0, 1)],
  prefillQueueTokensMax: [262_144, number(1, TOKENS_MAX, true)],
  whenPrefillFull: ['local', name(['local', 'shed'])],
  whenNoPrefill: ['local', name(['local', 'refuse'])],
  handoverMs: [5, number(0, 3_600_000)],
  handoverMsPerToken: [0.005, number(0, 1000)],
  decodeWeight: [1, number(0, 1000)],
};

/** `models.<name>.disaggregation`; what is left out is as above. Throws ConfigError. */
export function readDisaggregation(raw: unknown, source: string): DisaggConfig {
  const given = (raw ?? {}) as Record<string, unknown>;
  if (typeof given !== 'object' || Array.isArray(given))
    throw new ConfigError(`${source} must be a map of settings`);
  const keys = Object.keys(SETTINGS);
  for (const key of Object.keys(given)) {
    if (keys.includes(key)) continue;
    throw new ConfigError(
      `${source}: there is no setting "${key}"; did you mean "${nearestName(key, keys)}"?`,
    );
  }
  const values = Object.entries(SETTINGS).map(([key, [standard, check]]) => {
    const value = given[key] ?? null;
    return [key, value === null ? standard : check(value, `${source}.${key}`)];
  });
  return Object.freeze(Object.fromEntries(values)) as DisaggConfig;
}
