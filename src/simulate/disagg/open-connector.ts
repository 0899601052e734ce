/** Puts a mock engine's KV connector together: desk, carrier and settings. Called once, when the engine starts. */
import type { Clock } from '../../runtime/clock.js';
import type { BlockPool } from '../block-pool.js';
import type { EngineSettings } from '../engine-settings.js';
import type { KvPages } from '../tiny/kv-pages.js';
import { type DisaggSettings, resolveDisaggSettings } from './disagg-settings.js';
import { HandoverDesk } from './handover-desk.js';
import { HttpCarrier } from './http-carrier.js';
import type { KvCarrier, KvSource } from './kv-carrier.js';
import { KvConnector, limitMs } from './kv-connector.js';
import type { KvMemory, TransferOptions } from './kv-memory.js';
import type { LocalEngines } from './local-carrier.js';
import { TransferCarrier } from './transfer-carrier.js';

/** How a mock engine hands over KV; everything has a default. */
export interface DisaggOptions extends Partial<DisaggSettings> {
  /** Engines of this process, reached without sockets; absent: over a side channel that any process reaches. */
  readonly engines?: LocalEngines;
  /** The transfer engine moves the blocks; for `tiny`, whose pages it can read. Absent: they go over the side channel too. */
  readonly transfer?: TransferOptions;
  /** Port of the side channel; 0, the default, lets the system choose. */
  readonly port?: number;
}

/** What the connector shares with its engine. */
export interface ConnectorContext {
  readonly engineId: string;
  readonly host: string;
  readonly engine: EngineSettings;
  readonly pool: BlockPool;
  readonly pages: KvPages | null;
  /** Where the pages are, with `transfer`; closed with the connector, or when there will be none. */
  readonly memory: KvMemory | null;
  /** Decode may be sent together with its prefill, be there first, and wait. */
  readonly isParallel: boolean;
  readonly clock: Clock;
  /** Told when blocks were given back. */
  readonly onRoom: () => void;
}

/** Rejects with a ConfigError for a wrong setting, or with the reason why the side channel cannot listen. */
export async function openConnector(options: DisaggOptions, context: ConnectorContext): Promise<KvConnector> {
  const { engineId, engine, pool, pages, memory, isParallel, clock, onRoom } = context;
  const settings = resolveDisaggSettings(options);
  const speed = engine.speed === 'unlimited' ? Number.POSITIVE_INFINITY : engine.speed;
  const blockBytes = pages?.blockBytes ?? 0;
  const { blockSize } = engine;
  const leaseMs = limitMs(settings.leaseMs, speed);
  const desk = new HandoverDesk({
    engineId,
    pool,
    blockSize,
    blockBytes,
    leaseMs,
    waitMs: isParallel ? limitMs(settings.pullDeadlineMs, speed) : 0,
    clock,
    onRoom,
  });
  if (memory !== null) memory.onRoom = onRoom;
  const carrier = await openCarrier(options, context, desk, leaseMs);
  return new KvConnector({ settings, speed, blockSize, blockBytes, desk, carrier, clock });
}

function openCarrier(
  { engines, port = 0 }: DisaggOptions,
  { host, pages, memory, clock }: ConnectorContext,
  source: KvSource,
  leaseMs: number,
): KvCarrier | Promise<KvCarrier> {
  if (engines !== undefined) return engines.join(source, pages);
  if (memory === null) return HttpCarrier.open({ source, pages, host, port, clock });
  return TransferCarrier.open({ source, memory, leaseMs, host, port, clock });
}
