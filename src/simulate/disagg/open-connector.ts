/** Puts a mock engine's KV connector together: desk, carrier and settings. Called once, when the engine starts. */
import type { Clock } from '../../runtime/clock.js';
import type { BlockPool } from '../block-pool.js';
import type { EngineSettings } from '../engine-settings.js';
import type { KvPages } from '../tiny/kv-pages.js';
import { type DisaggSettings, resolveDisaggSettings } from './disagg-settings.js';
import { HandoverDesk } from './handover-desk.js';
import { HttpCarrier } from './http-carrier.js';
import { KvConnector, limitMs } from './kv-connector.js';
import type { LocalEngines } from './local-carrier.js';

/** How a mock engine hands over KV; everything has a default. */
export interface DisaggOptions extends Partial<DisaggSettings> {
  /** Engines of this process, reached without sockets; absent: over a side channel that any process reaches. */
  readonly engines?: LocalEngines;
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
  /** Decode may be sent together with its prefill, be there first, and wait. */
  readonly isParallel: boolean;
  readonly clock: Clock;
  /** Told when blocks were given back. */
  readonly onRoom: () => void;
}

/** Rejects with a ConfigError for a wrong setting, or with the reason why the side channel cannot listen. */
export async function openConnector(options: DisaggOptions, context: ConnectorContext): Promise<KvConnector> {
  const { engineId, host, engine, pool, pages, isParallel, clock, onRoom } = context;
  const settings = resolveDisaggSettings(options);
  const speed = engine.speed === 'unlimited' ? Number.POSITIVE_INFINITY : engine.speed;
  const blockBytes = pages?.blockBytes ?? 0;
  const { blockSize } = engine;
  const desk = new HandoverDesk({
    engineId,
    pool,
    blockSize,
    blockBytes,
    leaseMs: limitMs(settings.leaseMs, speed),
    waitMs: isParallel ? limitMs(settings.pullDeadlineMs, speed) : 0,
    clock,
    onRoom,
  });
  const carrier =
    options.engines?.join(desk, pages) ??
    (await HttpCarrier.open({ source: desk, pages, host, port: options.port ?? 0, clock }));
  return new KvConnector({ settings, speed, blockSize, blockBytes, desk, carrier, clock });
}
