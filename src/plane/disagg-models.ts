/**
 * Which models are served by prefill and decode workers, and how (R4): what the configuration says of roles and protocol,
 * held against what the workers say of themselves. Pure; runs on the core, for each WORLD.
 */
import { bootstrapOf, type DisaggConfig, readDisaggregation } from '../disagg-config.js';
import { computesPrompts, defaultProtocol, protocolOf } from '../engines/disagg/protocols.js';
import type { DisaggProtocolName, DisaggView, WorkerRole, WorkerSplit } from '../messages/disagg.js';
import type { WorkerView } from '../messages/records.js';
import type { WorkerConfig } from '../worker-config.js';
import type { PeerSays } from './peer-facts.js';

/** What the roles of a model's workers come to. */
export interface SplitModel {
  /** Null: no worker has a role. */
  readonly view: DisaggView | null;
  /** For operators: what is wrong, and what is done instead. One sentence each, without a period. */
  readonly notices: readonly string[];
}

/** A server that was started for one part can do no other; else a worker does what it is configured for. */
function roleOfWorker({ role }: WorkerConfig, { handover }: PeerSays): WorkerRole {
  return role === 'both' ? (handover.role ?? 'both') : role;
}

/** The part that a worker has, as it is configured or, where that is silent, as it says itself; undefined: none. */
export function splitOfWorker(worker: WorkerConfig, says: PeerSays): WorkerSplit | undefined {
  const role = roleOfWorker(worker, says);
  if (role === 'both' && worker.bootstrap === null) return undefined;
  const { bootstrap, url, kvEngineId, kvInfoEndpoint } = worker;
  const { host, port } = bootstrapOf(bootstrap, url, says.handover.bootstrapPort);
  return {
    role,
    bootstrapHost: host,
    bootstrapPort: port,
    engineId: kvEngineId ?? says.engineId,
    infoEndpoint: kvInfoEndpoint ?? says.handover.infoEndpoint,
  };
}

const STANDARD = readDisaggregation({}, 'disaggregation');
const roleOf = ({ split }: WorkerView): WorkerSplit['role'] => split?.role ?? 'both';

/** A worker, and what it says of itself. */
interface Peer extends PeerSays {
  readonly worker: WorkerView;
}

/**
 * `workers`: those that serve the model, with their parts. `says`: what each says of itself. `config`: of the model; its
 * defaults where it has none. `isWhole`: no worker is on its way up for the first time.
 */
export function splitModel(
  model: string,
  workers: readonly WorkerView[],
  says: (worker: WorkerView) => PeerSays,
  config: DisaggConfig = STANDARD,
  isWhole = true,
): SplitModel {
  const peers = workers.map(worker => ({ worker, ...says(worker) }));
  const prefill = peers.filter(({ worker }) => roleOf(worker) === 'prefill');
  const decode = peers.filter(({ worker }) => roleOf(worker) !== 'prefill');
  if (prefill.length === 0 && decode.every(({ worker }) => roleOf(worker) === 'both'))
    return { view: null, notices: [] };
  const { engine } = workers[0]!;
  const name = config.protocol === 'auto' ? defaultProtocol(engine) : config.protocol;
  const fault = name === null ? `${engine} has no protocol for it` : faultOf(peers, prefill, decode, name);
  const notices = [...doubtsOf(prefill, decode, name, isWhole)];
  if (fault !== null)
    notices.unshift(
      computesPrompts(engine)
        ? `prefill and decode stay together on its decode workers: ${fault}`
        : `it cannot be served, as decode workers of ${engine} compute no prompts: ${fault}`,
    );
  const needsPrefill = name !== null && !protocolOf(name).decodeComputes;
  if (fault === null && needsPrefill && config.policy !== 'always')
    notices.push(`${name} gives every prompt to a prefill worker, as if policy were always`);
  const view = { ...config, protocol: fault === null ? name : null };
  return { view, notices: notices.map(notice => `model "${model}": ${notice}`) };
}

/** The first pair of which something can be told; null: there is none. */
function firstOfPairs(
  prefill: readonly Peer[],
  decode: readonly Peer[],
  tell: (from: Peer, to: Peer) => string | null,
): string | null {
  for (const from of prefill) {
    for (const to of decode) {
      const told = tell(from, to);
      if (told !== null) return told;
    }
  }
  return null;
}

/** Why these workers cannot hand over to each other, in words; null: they can. */
function faultOf(
  peers: readonly Peer[],
  prefill: readonly Peer[],
  decode: readonly Peer[],
  name: DisaggProtocolName,
): string | null {
  const { engine, needsSameVersion } = protocolOf(name);
  const other = peers.find(({ worker }) => worker.engine !== engine)?.worker;
  if (other !== undefined) return `${name} is for ${engine}, and ${other.url} is ${other.engine}`;
  const misled = peers.find(({ worker, handover: { role } }) => role !== null && role !== roleOf(worker));
  if (misled !== undefined) {
    const { worker, handover } = misled;
    return `${worker.url} has the role ${roleOf(worker)}, and was started for ${handover.role}`;
  }
  return (
    firstOfPairs(prefill, decode, (from, to) => blocksFault(from.worker, to.worker, name)) ??
    firstOfPairs(prefill, decode, typesFault) ??
    (needsSameVersion ? firstOfPairs(prefill, decode, versionsDiffer) : null)
  );
}

function blocksFault(from: WorkerView, to: WorkerView, name: DisaggProtocolName): string | null {
  if (from.blockSize === null || to.blockSize === null || from.blockSize === to.blockSize) return null;
  const { takesSmallerBlocks } = protocolOf(name);
  if (takesSmallerBlocks && from.blockSize < to.blockSize) return null;
  const sizes = `${from.url} has ${from.blockSize} tokens per block, and ${to.url} ${to.blockSize}`;
  return takesSmallerBlocks ? `${sizes}; at most as many are allowed` : `${sizes}; they must be equal`;
}

/** `auto` is the type of the model, which is the same, whatever it is. */
function typesFault(from: Peer, to: Peer): string | null {
  const [one, other] = [from.handover.kvDtype, to.handover.kvDtype];
  if (one === null || other === null || one === other || one === 'auto' || other === 'auto') return null;
  return `${from.worker.url} keeps its KV as ${one}, and ${to.worker.url} as ${other}; they must be equal`;
}

function versionsDiffer(from: Peer, to: Peer): string | null {
  if (from.version === null || to.version === null || from.version === to.version) return null;
  return `${from.worker.url} is version ${from.version}, and ${to.worker.url} ${to.version}; they should be equal`;
}

/** What an operator should look at, although it does not keep the workers apart. */
function* doubtsOf(
  prefill: readonly Peer[],
  decode: readonly Peer[],
  name: DisaggProtocolName | null,
  isWhole: boolean,
): Generator<string> {
  if (decode.length === 0 && isWhole) yield 'it has prefill workers, and none that answers';
  const silent = [...prefill, ...decode].find(({ version }) => version === null)?.worker;
  if (silent !== undefined)
    yield `${silent.url} does not tell its version: whether prefill and decode fit together cannot be checked`;
  const versions = name === null || protocolOf(name).needsSameVersion ? null : versionsDiffer;
  const differ = versions === null ? null : firstOfPairs(prefill, decode, versions);
  if (differ !== null) yield differ;
  const lengths = firstOfPairs(prefill, decode, lengthsDiffer);
  if (lengths !== null) yield lengths;
}

/** For the model that both list first: what they serve beside it has the same weights. */
function lengthsDiffer({ worker: from }: Peer, { worker: to }: Peer): string | null {
  for (const { id, contextLength } of from.models) {
    const other = to.models.find(model => model.id === id)?.contextLength ?? null;
    if (contextLength === null || other === null || contextLength === other) continue;
    return `${from.url} takes ${contextLength} tokens, and ${to.url} ${other}; the smaller number counts`;
  }
  return null;
}
