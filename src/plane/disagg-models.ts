/**
 * Which models are served by prefill and decode workers, and how (R4): what the configuration says of roles and protocol,
 * held against what the workers say of themselves. Pure; runs on the core, for each WORLD.
 */
import { bootstrapOf, type DisaggConfig, readDisaggregation } from '../disagg-config.js';
import { defaultProtocol, protocolOf } from '../engines/disagg/protocols.js';
import type { DisaggProtocolName, DisaggView, WorkerSplit } from '../messages/disagg.js';
import type { WorkerView } from '../messages/records.js';
import type { WorkerConfig } from '../worker-config.js';

/** What the roles of a model's workers come to. */
export interface SplitModel {
  /** Null: no worker has a role. */
  readonly view: DisaggView | null;
  /** For operators: what is wrong, and what is done instead. One sentence each, without a period. */
  readonly notices: readonly string[];
}

/** The part that a worker's configuration gives it; undefined: none. */
export function splitOfConfig(worker: WorkerConfig): WorkerSplit | undefined {
  if (worker.role === 'both' && worker.bootstrap === null) return undefined;
  const { role, bootstrap, url, kvEngineId, kvInfoEndpoint } = worker;
  const { host, port } = bootstrapOf(bootstrap, url);
  return {
    role,
    bootstrapHost: host,
    bootstrapPort: port,
    engineId: kvEngineId,
    infoEndpoint: kvInfoEndpoint,
  };
}

const STANDARD = readDisaggregation({}, 'disaggregation');
const roleOf = ({ split }: WorkerView): WorkerSplit['role'] => split?.role ?? 'both';

/** `workers`: those that serve the model, with their parts. `config`: of the model; its defaults where it has none. */
export function splitModel(
  model: string,
  workers: readonly WorkerView[],
  config: DisaggConfig = STANDARD,
): SplitModel {
  const prefill = workers.filter(worker => roleOf(worker) === 'prefill');
  const decode = workers.filter(worker => roleOf(worker) !== 'prefill');
  if (prefill.length === 0 && decode.every(worker => roleOf(worker) === 'both'))
    return { view: null, notices: [] };
  const name = config.protocol === 'auto' ? defaultProtocol(workers[0]!.engine) : config.protocol;
  const fault =
    name === null ? `${workers[0]!.engine} has no protocol for it` : faultOf(workers, prefill, decode, name);
  const notices: string[] = [];
  if (fault !== null)
    notices.push(`model "${model}": prefill and decode stay together on its decode workers: ${fault}`);
  const needsPrefill = name !== null && !protocolOf(name).decodeComputes;
  if (fault === null && needsPrefill && config.policy !== 'always')
    notices.push(
      `model "${model}": ${name} gives every prompt to a prefill worker, as if policy were always`,
    );
  return { view: { ...config, protocol: fault === null ? name : null }, notices };
}

/** Why these workers cannot hand over to each other, in words; null: they can. */
function faultOf(
  workers: readonly WorkerView[],
  prefill: readonly WorkerView[],
  decode: readonly WorkerView[],
  name: DisaggProtocolName,
): string | null {
  const { engine, takesSmallerBlocks } = protocolOf(name);
  const other = workers.find(worker => worker.engine !== engine);
  if (other !== undefined) return `${name} is for ${engine}, and ${other.url} is ${other.engine}`;
  for (const from of prefill) {
    for (const to of decode) {
      if (from.blockSize === null || to.blockSize === null || from.blockSize === to.blockSize) continue;
      if (takesSmallerBlocks && from.blockSize < to.blockSize) continue;
      const sizes = `${from.url} has ${from.blockSize} tokens per block, and ${to.url} ${to.blockSize}`;
      return takesSmallerBlocks ? `${sizes}; at most as many are allowed` : `${sizes}; they must be equal`;
    }
  }
  return null;
}
