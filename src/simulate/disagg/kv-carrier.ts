/**
 * Contracts of the hand-over of KV blocks between mock engines: who holds blocks (KvSource), who brings them over
 * (KvCarrier), and what they say to each other. A carrier knows pages and peers, and nothing of connectors or requests;
 * a transfer engine can take its place.
 */

/** Why a hand-over did not happen, in words for the log and the test. */
export class HandoverError extends Error {}

/** What a puller asks of the engine that holds the blocks. */
export interface KvAsk {
  /** The engine that it means, for its address may be another's by now; null: whoever is there. */
  readonly engineId: string | null;
  /** Name of the offer. */
  readonly key: string;
  /** Which of the offered blocks, by their numbers over there; null: those from index `from` on. */
  readonly blockIds: readonly number[] | null;
  readonly from: number;
  /** Blocks wanted. */
  readonly count: number;
  /** Tokens per block, and bytes of its page: 0 where an engine only models its KV. Both sides must agree. */
  readonly blockSize: number;
  readonly blockBytes: number;
}

/** An engine that can be reached; `engineId` null: by its address alone. */
export interface KvPeer {
  readonly engineId: string | null;
  readonly host: string;
  readonly port: number;
}

/** Blocks that are being read; they stay pinned until `end`. */
export interface KvRead {
  readonly blocks: readonly number[];
  /** Blocks that this read gives before it stalls for good, as an injected fault; infinite without one. */
  readonly stallAfter: number;
  end(): void;
}

/** `heartbeat` renews the lease of an offer, `done` ends it. */
export type KvNotice = 'heartbeat' | 'done';

/** The side that holds blocks: what a carrier asks on behalf of peers. */
export interface KvSource {
  readonly engineId: string;
  /**
   * Waits for the offer where the connector allows it. Rejects with a HandoverError that names what does not match; when
   * `signal` fires, with its reason.
   */
  read(ask: KvAsk, signal: AbortSignal): Promise<KvRead>;
  /** False: there is no such offer (any more). */
  notice(engineId: string | null, key: string, notice: KvNotice): boolean;
}

/** Brings blocks over. One per engine, on its thread. */
export interface KvCarrier {
  /** Where peers reach this engine. */
  readonly host: string;
  readonly port: number;
  /**
   * Copies the blocks asked for into the pages `into`, in order. Rejects with a HandoverError, or with the reason of
   * `signal`; after it settled nothing is written any more, and what was written may be a part.
   */
  pull(peer: KvPeer, ask: KvAsk, into: readonly number[], signal: AbortSignal): Promise<void>;
  /** Tells a peer. Fire and forget: what gets lost is made good by the lease. */
  notify(peer: KvPeer, key: string, notice: KvNotice): void;
  close(): Promise<void>;
}
