/**
 * Carries blocks between mock engines of one process: a registry of engines, and one copy per block from page to page.
 * Needs no socket and no real time, so whole fleets run under a virtual clock. The registry belongs to whoever starts
 * the engines; a carrier belongs to one of them.
 */
import type { KvPages } from '../tiny/kv-pages.js';
import {
  HandoverError,
  type KvAsk,
  type KvCarrier,
  type KvNotice,
  type KvPeer,
  type KvRead,
  type KvSource,
} from './kv-carrier.js';

interface Registered {
  readonly source: KvSource;
  readonly pages: KvPages | null;
}

/** The mock engines of one process that can reach each other. */
export class LocalEngines {
  readonly #engines = new Map<string, Registered>();
  /** In order of joining: the place is the port. */
  readonly #ids: string[] = [];

  /** A carrier for one more engine; `pages` are its KV, null where it has none. */
  join(source: KvSource, pages: KvPages | null): KvCarrier {
    this.#engines.set(source.engineId, { source, pages });
    this.#ids.push(source.engineId);
    return {
      host: 'localhost',
      port: this.#ids.length,
      pull: (peer, ask, into, signal) => this.#pull(peer, ask, into, pages, signal),
      notify: (peer, key, notice) => this.#notify(peer, key, notice),
      close: async () => {
        this.#engines.delete(source.engineId);
      },
    };
  }

  #notify(peer: KvPeer, key: string, notice: KvNotice): void {
    this.#find(peer)?.source.notice(peer.engineId, key, notice);
  }

  #find({ engineId, port }: KvPeer): Registered | undefined {
    return this.#engines.get(engineId ?? this.#ids[port - 1] ?? '');
  }

  async #pull(
    peer: KvPeer,
    ask: KvAsk,
    into: readonly number[],
    pages: KvPages | null,
    signal: AbortSignal,
  ): Promise<void> {
    const holder = this.#find(peer);
    if (holder === undefined)
      throw new HandoverError(`there is no engine ${peer.engineId ?? peer.port} in this process`);
    const read = await holder.source.read(ask, signal);
    try {
      signal.throwIfAborted();
      for (let at = 0; at < Math.min(into.length, read.stallAfter); at++) copy(holder, read, pages, into, at);
      if (read.stallAfter < into.length) await aborted(signal);
    } finally {
      read.end();
    }
  }
}

function copy(
  holder: Registered,
  read: KvRead,
  pages: KvPages | null,
  into: readonly number[],
  at: number,
): void {
  if (pages !== null && holder.pages !== null)
    pages.bytesOf(into[at]!).set(holder.pages.bytesOf(read.blocks[at]!));
}

/** Rejects with the reason of a signal when it fires. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
  });
}
