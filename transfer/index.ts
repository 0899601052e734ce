/**
 * The public surface of `millrace/transfer`: agents that move KV blocks between the pools of processes and hosts. Without the
 * addon every entry throws TransferError UNSUPPORTED with the reason; nothing is emulated.
 */
export {
  type CreatePoolOptions,
  createAgent,
  probeTransports,
  type RegisterDevicePoolOptions,
  type RegisterPoolOptions,
  type TransferAgent,
  type TransferAgentOptions,
  type TransferEvents,
  type TransportInfo,
} from './agent.js';
export type { AgentPort, PortDescription, PortOptions } from './agent-port.js';
export type { BlockContent, BlockPool, BlockSet, BlockStats, CommitOutcome } from './blocks/block-pool.js';
export { TRANSPORTS } from './descriptor.js';
export { TransferError, type TransferErrorCode } from './errors.js';
export type { TransferResult } from './flights.js';
export {
  type KvShape,
  type Layout,
  layoutBytes,
  type OpaqueLayout,
  type PagedKvLayout,
  type TensorListLayout,
} from './layout.js';
export type { Peer, Plan, PlanOptions, PlanRange, PostOptions, TransportName } from './peer.js';
export type { Lease, Pool } from './pool.js';
export type { PortCompletion } from './port-flights.js';
export { openTransferPort, type PortPlan, type PortPlanOptions, type TransferPort } from './transfer-port.js';
export { type UcxInfo, type UcxTransport, ucxInfo } from './ucx/ucx-info.js';
