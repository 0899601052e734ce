/** The shape of a WORLD's parts about prefill and decode (R2): as in world-shape.ts. Pool thread. */
import {
  DISAGG_POLICIES,
  DISAGG_PROTOCOLS,
  type DisaggView,
  WORKER_ROLES,
  type WorkerSplit,
} from './disagg.js';

/** What a field holds that is no `expected`; made and thrown by the caller of this file. */
export type ShapeFault = (field: string, expected: string) => Error;

type Fields = Readonly<Record<string, unknown>>;

/** `worker.split`. Throws what `fault` makes. */
export function readSplit(split: Fields, field: string, fault: ShapeFault): WorkerSplit {
  const textOrNull = (name: 'engineId' | 'infoEndpoint'): string | null => {
    const value = split[name];
    if (value === null || typeof value === 'string') return value;
    throw fault(`${field}.${name}`, 'a string or null');
  };
  const { bootstrapHost, bootstrapPort } = split;
  if (typeof bootstrapHost !== 'string') throw fault(`${field}.bootstrapHost`, 'a string');
  return {
    role: nameIn(WORKER_ROLES, split.role, `${field}.role`, fault),
    bootstrapHost,
    bootstrapPort: numberIn(bootstrapPort, 65_535, `${field}.bootstrapPort`, fault),
    engineId: textOrNull('engineId'),
    infoEndpoint: textOrNull('infoEndpoint'),
  };
}

/** `model.disaggregation`. Throws what `fault` makes. */
export function readDisaggregation(view: Fields, field: string, fault: ShapeFault): DisaggView {
  const number = (name: keyof DisaggView, max = Number.MAX_SAFE_INTEGER): number =>
    numberIn(view[name], max, `${field}.${name}`, fault);
  return {
    protocol:
      view.protocol === null ? null : nameIn(DISAGG_PROTOCOLS, view.protocol, `${field}.protocol`, fault),
    policy: nameIn(DISAGG_POLICIES, view.policy, `${field}.policy`, fault),
    effIslMax: number('effIslMax'),
    effIslRatioMax: number('effIslRatioMax', 1),
    prefillBusyTokens: number('prefillBusyTokens'),
    decodeKvBusy: number('decodeKvBusy', 1),
    prefillQueueTokensMax: number('prefillQueueTokensMax'),
    whenPrefillFull: nameIn(['local', 'shed'], view.whenPrefillFull, `${field}.whenPrefillFull`, fault),
    whenNoPrefill: nameIn(['local', 'refuse'], view.whenNoPrefill, `${field}.whenNoPrefill`, fault),
    handoverMs: number('handoverMs'),
    handoverMsPerToken: number('handoverMsPerToken'),
    decodeWeight: number('decodeWeight'),
  };
}

function nameIn<Name extends string>(
  names: readonly Name[],
  value: unknown,
  field: string,
  fault: ShapeFault,
): Name {
  const known = names.find(name => name === value);
  if (known === undefined) throw fault(field, `one of ${names.join(', ')}`);
  return known;
}

function numberIn(value: unknown, max: number, field: string, fault: ShapeFault): number {
  if (typeof value === 'number' && value >= 0 && value <= max) return value;
  throw fault(field, `a number from 0 to ${max}`);
}
