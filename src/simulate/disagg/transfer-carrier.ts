/**
 * Carries blocks between mock engines with the transfer engine: the side channel says which blocks, the engine moves the
 * bytes, over shared memory on one host and over tcp elsewhere. Two engines meet once and exchange what their agents need;
 * then each read is granted with the generations of its blocks and a lease of its own, which the reader's native thread
 * renews and whose end (done, dead or silent) gives the blocks back. One per engine, on its thread.
 *
 *     POST /meet Introduction → 200 Introduction | 409           both are connected now
 *     POST /grant KvAsk + puller → 200 Grant, one per line | 409 {"error":"…"} | 412: meet first
 *     GET /transfer → KvMemoryStats
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { type Lease, type PagedKvLayout, type Peer, TransferError } from '../../transfer/index.js';
import {
  HandoverError,
  type KvAsk,
  type KvCarrier,
  type KvNotice,
  type KvPeer,
  type KvRead,
  type KvSource,
} from './kv-carrier.js';
import type { KvMemory } from './kv-memory.js';
import {
  readJson,
  readJsonLines,
  refusalOf,
  refuse,
  SideChannel,
  type SideChannelOptions,
  whenGone,
} from './side-channel.js';

/** Of a read: heartbeats are native and come every 250 ms, so who is silent for longer is dead, or never heard of its grant. */
const LEASE_MS_MIN = 1000;
const LEASE_MS_MAX = 5000;
const MEET_DEADLINE_MS = 5000;

/** What both sides must have alike; the order of the numbers in a block may differ. */
const SHAPE = ['model', 'layers', 'blockTokens', 'heads', 'headDim', 'elementBytes'] as const;

/** Codes of a peer that has to be met again. */
const LOST = new Set(['NOT_FOUND', 'STALE', 'PEER_LOST']);

/** What a carrier needs. */
export interface TransferCarrierOptions extends SideChannelOptions {
  /** Closed with the carrier; who opens one closes the memory itself where that fails. */
  readonly memory: KvMemory;
  /** How long offers are kept without a word; reads as long, and from 1 to 5 s. */
  readonly leaseMs: number;
}

/** What an engine says of itself. */
interface Introduction {
  readonly engineId: string;
  readonly layout: PagedKvLayout;
  readonly pool: number;
  /** Of the transfer engine's agent, base64. */
  readonly metadata: string;
}

/** Blocks that may be read now, the first ones first; more grants follow until all are there. */
interface Grant {
  readonly lease: number;
  readonly blocks: readonly number[];
  readonly generations: readonly number[];
}

/** A holder that was met. */
interface Holder {
  readonly pool: number;
  readonly peer: Peer;
}

/** See the head of the file. */
export class TransferCarrier implements KvCarrier {
  readonly #source: KvSource;
  readonly #memory: KvMemory;
  readonly #channel: SideChannel;
  /** By address. */
  readonly #holders = new Map<string, Promise<Holder>>();

  private constructor({ source, memory }: TransferCarrierOptions, channel: SideChannel) {
    this.#source = source;
    this.#memory = memory;
    this.#channel = channel;
  }

  /** Opens the side channel. Rejects with the reason when it cannot listen. */
  static async open(options: TransferCarrierOptions): Promise<TransferCarrier> {
    const channel = await SideChannel.open(options, new Grants(options).routes);
    return new TransferCarrier(options, channel);
  }

  get host(): string {
    return this.#channel.host;
  }

  get port(): number {
    return this.#channel.port;
  }

  async pull(peer: KvPeer, ask: KvAsk, into: readonly number[], signal: AbortSignal): Promise<void> {
    const both = AbortSignal.any([signal, this.#channel.closed]);
    try {
      const { holder, answer } = await this.#ask(peer, ask, both);
      await this.#take(holder, answer, into, both);
    } catch (error) {
      if (error instanceof TransferError && LOST.has(error.code)) this.#holders.delete(addressOf(peer));
      both.throwIfAborted();
      throw error instanceof HandoverError ? error : new HandoverError((error as Error).message);
    }
  }

  notify(peer: KvPeer, key: string, notice: KvNotice): void {
    this.#channel.notify(peer, key, notice);
  }

  async close(): Promise<void> {
    await this.#channel.close();
    await this.#memory.close();
  }

  /** Asks for blocks, after the two have met; again where the holder has forgotten that, as one that was restarted has. */
  async #ask(
    peer: KvPeer,
    ask: KvAsk,
    signal: AbortSignal,
  ): Promise<{ readonly holder: Holder; readonly answer: IncomingMessage }> {
    for (let isAgain = false; ; isAgain = true) {
      const met = this.#holderAt(peer);
      const holder = await unlessAborted(met, signal);
      const puller = this.#source.engineId;
      const answer = await this.#channel.post(peer, '/grant', { ...ask, puller }, signal);
      if (answer.statusCode === 200) return { holder, answer };
      const refusal = await refusalOf(answer);
      if (answer.statusCode !== 412 || isAgain) throw refusal;
      this.#forget(peer, met);
    }
  }

  /** The same meeting for all pulls, until it is forgotten. */
  #holderAt(peer: KvPeer): Promise<Holder> {
    const address = addressOf(peer);
    let holder = this.#holders.get(address);
    if (holder === undefined) {
      holder = this.#meet(peer);
      this.#holders.set(address, holder);
      holder.catch(() => this.#forget(peer, holder!));
    }
    return holder;
  }

  /** Unless another pull has met it again. */
  #forget(peer: KvPeer, met: Promise<Holder>): void {
    const address = addressOf(peer);
    if (this.#holders.get(address) === met) this.#holders.delete(address);
  }

  async #meet(peer: KvPeer): Promise<Holder> {
    const own = introductionOf(this.#source, this.#memory);
    const said = await this.#channel.postWithin(MEET_DEADLINE_MS, peer, '/meet', own, async answer => {
      if (answer.statusCode === 200) return readJson<Introduction>(answer);
      if (answer.statusCode !== 404) throw await refusalOf(answer);
      throw new HandoverError(
        `the holder at ${peer.host}:${peer.port} does not hand KV over by the transfer engine`,
      );
    });
    const met = this.#memory.agent.connect(Buffer.from(said.metadata, 'base64'));
    return { pool: said.pool, peer: met };
  }

  /** Reads what is granted, as it is granted, under the holder's lease. */
  async #take(
    { peer, pool: remotePool }: Holder,
    answer: IncomingMessage,
    into: readonly number[],
    signal: AbortSignal,
  ): Promise<void> {
    const { pool } = this.#memory;
    let lease = 0;
    let got = 0;
    try {
      for await (const grant of readJsonLines<Grant>(answer)) {
        const { blocks, generations } = grant;
        if (lease === 0) peer.holdLease(grant.lease);
        lease = grant.lease;
        if (blocks.length === 0) continue;
        const local = { pool, blocks: into.slice(got, got + blocks.length) };
        const remote = { pool: remotePool, blocks, generations };
        await peer.plan({ direction: 'read', local, remote }).post({ lease, signal, reader: 'soon' });
        got += blocks.length;
      }
      if (got < into.length) throw new HandoverError(`the peer granted ${got} of ${into.length} blocks`);
    } finally {
      if (lease !== 0) letGo(peer, lease);
    }
  }
}

/** The holding side: meets pullers and grants reads. */
class Grants {
  readonly routes = {
    'POST /meet': (incoming: IncomingMessage, outgoing: ServerResponse) => this.#meet(incoming, outgoing),
    'POST /grant': (incoming: IncomingMessage, outgoing: ServerResponse) => this.#grant(incoming, outgoing),
    'GET /transfer': async (_incoming: IncomingMessage, outgoing: ServerResponse) =>
      void outgoing.end(JSON.stringify(this.#memory.stats())),
  };
  readonly #source: KvSource;
  readonly #memory: KvMemory;
  readonly #leaseMs: number;
  /** By engine id. */
  readonly #pullers = new Map<string, Peer>();

  constructor({ source, memory, leaseMs }: TransferCarrierOptions) {
    this.#source = source;
    this.#memory = memory;
    this.#leaseMs = Math.min(LEASE_MS_MAX, Math.max(LEASE_MS_MIN, Math.ceil(leaseMs)));
    memory.agent.on('peerLost', lost => {
      for (const [engineId, peer] of this.#pullers) if (peer === lost) this.#pullers.delete(engineId);
    });
  }

  async #meet(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
    try {
      const { engineId, layout, metadata } = await readJson<Introduction>(incoming);
      checkShape(layout, this.#memory.layout);
      this.#pullers.set(engineId, this.#memory.agent.connect(Buffer.from(metadata, 'base64')));
    } catch (error) {
      refuse(outgoing, 409, error);
      return;
    }
    outgoing.end(JSON.stringify(introductionOf(this.#source, this.#memory)));
  }

  async #grant(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
    const gone = whenGone(outgoing);
    const { puller, ...ask } = await readJson<KvAsk & { readonly puller: string }>(incoming);
    let read: KvRead | null = null;
    try {
      const peer = this.#pullers.get(puller);
      if (peer === undefined) throw new TransferError('NOT_FOUND', `this engine has not met ${puller}`);
      read = await this.#source.read(ask, gone);
      gone.throwIfAborted();
      const { end } = read;
      this.#give(outgoing, read, this.#memory.lease(read.blocks, peer, this.#leaseMs, end), gone);
    } catch (error) {
      read?.end();
      const isLost = error instanceof TransferError && LOST.has(error.code);
      if (isLost) this.#pullers.delete(puller);
      refuse(outgoing, isLost ? 412 : 409, error);
    }
  }

  /** Says what was granted. A puller that goes away before it has heard all of it needs the lease no more. */
  #give(outgoing: ServerResponse, read: KvRead, lease: Lease, gone: AbortSignal): void {
    gone.addEventListener('abort', () => {
      if (!outgoing.writableFinished && this.#memory.endLease(lease)) read.end();
    });
    const blocks = read.blocks.slice(0, Math.min(read.blocks.length, read.stallAfter));
    const generations = [...this.#memory.generationsOf(blocks)];
    outgoing.write(`${JSON.stringify({ lease: lease.id, blocks, generations } satisfies Grant)}\n`);
    if (blocks.length === read.blocks.length) outgoing.end();
  }
}

const addressOf = ({ host, port }: KvPeer): string => `${host} ${port}`;

function introductionOf({ engineId }: KvSource, { agent, pool, layout }: KvMemory): Introduction {
  return { engineId, layout, pool: pool.id, metadata: Buffer.from(agent.metadata()).toString('base64') };
}

function checkShape(puller: PagedKvLayout, holder: PagedKvLayout): void {
  for (const field of SHAPE) {
    if (puller[field] === holder[field]) continue;
    throw new HandoverError(
      `${field} differs: ${JSON.stringify(puller[field])} at the puller, ${JSON.stringify(holder[field])} at the holder`,
    );
  }
}

/** Ends the use of a peer's lease. One whose peer is lost has ended. */
function letGo(peer: Peer, lease: number): void {
  try {
    peer.dropLease(lease);
  } catch (error) {
    if (!(error instanceof TransferError)) throw error;
  }
}

/** The outcome of `work`, or the reason of the signal where that comes first. */
function unlessAborted<Value>(work: Promise<Value>, signal: AbortSignal): Promise<Value> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
