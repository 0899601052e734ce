// Who survives: one agent that meets one peer after another, has each killed in a phase of their transfers, and looks after
// its blocks. One half of its pool is worked on, the other holds canaries; then the halves change places, so that a block
// that was let go and filled anew is seen to keep its contents while the next peer lives and dies.
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { type Random, randomInteger } from '#millrace/runtime/random.js';
import {
  type BlockSet,
  createAgent,
  type Lease,
  type Peer,
  type TransferAgent,
  TransferError,
  type TransportName,
} from '#millrace/transfer/index.js';
import { BLOCK_WORDS, BLOCKS, type Blow, LAYOUT, type Meeting, peerTag } from './kill-words.js';

/** When the peer is killed, seen from what it does with the survivor. */
export const PHASES = [
  'before connect',
  'after connect',
  'between posts',
  'posted, not begun',
  'in mid-copy',
  'copied, not notified',
  'renewing a lease',
  'in close',
] as const;
export type Phase = (typeof PHASES)[number];
/** What the survivor does: reads from the peer, writes to it, or is read and written by it. */
export const ROLES = ['read', 'write', 'target'] as const;
export type Role = (typeof ROLES)[number];

/** How one death went. */
export interface Death {
  readonly phase: Phase;
  readonly role: Role;
  /** From the kill to the last of: the loss is told, every promise has settled, the lease has ended, all blocks are free. */
  readonly ms: number;
  readonly done: number;
  readonly lost: number;
  readonly refused: number;
}

const CHILD = fileURLToPath(new URL('./killed-peer.js', import.meta.url));
const HALF = BLOCKS;
const POSTS = 6;
const WAIT_MS = 20_000;
const SPARES = 2;

const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve));

export class Survivor {
  readonly agent: TransferAgent;
  readonly #transport: TransportName;
  readonly #random: Random;
  readonly #pool;
  readonly #words: Uint32Array;
  readonly #spares: Promise<{ child: ChildProcess; metadata: Buffer }>[] = [];
  readonly #contents = new Uint32Array(2 * HALF);
  #idle: BlockSet;
  #used: BlockSet;
  #tags = 0;
  #done = 0;
  #lost = 0;
  #refused = 0;
  #foreign = 0;
  #hung = 0;

  constructor(transport: TransportName, random: Random) {
    this.#transport = transport;
    this.#random = random;
    this.agent = createAgent({ name: 'survivor', transports: [transport] });
    this.#pool = this.agent.createPool({ layout: LAYOUT, blocks: 2 * HALF, blockTable: true });
    this.#words = new Uint32Array(this.#pool.buffer);
    this.#used = this.#take(HALF);
    this.#idle = this.#take(HALF);
  }

  /** Blocks with contents of their own. */
  #take(count: number): BlockSet {
    const set = this.#pool.table!.reserve(count);
    if (set === 'full') throw new Error('blocks are missing: they were not let go');
    for (const block of set.blocks) this.#fill(block);
    return set;
  }

  #fill(block: number): void {
    this.#contents[block] = ++this.#tags;
    this.#words.fill(this.#tags, block * BLOCK_WORDS, (block + 1) * BLOCK_WORDS);
  }

  /** Counts words that are not their block's. */
  #look(blocks: Iterable<number>, wanted: (block: number) => number): void {
    for (const block of blocks) {
      const tag = wanted(block);
      for (let at = block * BLOCK_WORDS; at < (block + 1) * BLOCK_WORDS; at++) {
        if (this.#words[at] !== tag) this.#foreign++;
      }
    }
  }

  /** Words that were found in a block of somebody else, and waits for what had to come and did not. */
  get findings(): { readonly foreignWords: number; readonly hung: number } {
    return { foreignWords: this.#foreign, hung: this.#hung };
  }

  /** Rejects when nothing has come of it for long. */
  async #inTime<T>(what: string, promise: Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        this.#hung++;
        reject(new Error(`${what}: nothing for ${WAIT_MS} ms`));
      }, WAIT_MS);
    });
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
  }

  #spawn(): void {
    while (this.#spares.length < SPARES) {
      const child = fork(CHILD, [this.#transport], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
      const said = once(child, 'message').then(([{ metadata }]) => ({
        child,
        metadata: Buffer.from(metadata, 'base64'),
      }));
      this.#spares.push(this.#inTime('a peer starts', said));
    }
  }

  /** Ends those that wait. */
  async close(): Promise<void> {
    for (const { child } of await Promise.all(this.#spares)) {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
    this.#look(this.#idle.blocks, block => this.#contents[block]!);
    this.#pool.table!.release(this.#idle);
    this.#pool.table!.release(this.#used);
    if (this.#pool.table!.stats().free !== 2 * HALF) throw new Error('blocks are missing at the end');
    this.#pool.close();
    await this.agent.close();
  }

  #settles(promise: Promise<unknown>): Promise<void> {
    return promise.then(
      () => {
        this.#done++;
      },
      error => {
        if (!(error instanceof TransferError) || error.code !== 'PEER_LOST') throw error;
        this.#lost++;
      },
    );
  }

  /** Posts the same blocks a few times, in one turn. */
  #post(peer: Peer, role: Role, meeting: Meeting, notification?: Uint8Array): Promise<void>[] {
    const first = role === 'read' ? 0 : BLOCKS / 2;
    const plan = peer.plan({
      direction: role === 'read' ? 'read' : 'write',
      local: { pool: this.#pool, blocks: this.#used.blocks.subarray(0, BLOCKS / 2) },
      remote: {
        pool: meeting.pool,
        blocks: meeting.blocks.slice(first, first + BLOCKS / 2),
        generations: meeting.generations.slice(first, first + BLOCKS / 2),
      },
    });
    return Array.from({ length: POSTS }, () =>
      this.#settles(plan.post(notification === undefined ? {} : { notification })),
    );
  }

  /** Meets the next peer, has it killed in this phase, and waits until everything of it has ended. */
  async survive(phase: Phase, role: Role): Promise<Death> {
    this.#spawn();
    const { child, metadata } = await this.#spares.shift()!;
    this.#spawn();
    const before = { done: this.#done, lost: this.#lost, refused: this.#refused };
    let killedMs = 0;
    const kill = (): void => {
      killedMs = performance.now();
      child.kill('SIGKILL');
    };
    const exited = once(child, 'exit');
    const told = once(this.agent, 'peerLost');
    if (phase === 'before connect') {
      kill();
      await exited;
      killedMs = performance.now();
    }
    let peer: Peer | null = null;
    try {
      peer = this.agent.connect(metadata);
    } catch (error) {
      // Who is on this host is known to be gone at once.
      if (!(error instanceof TransferError) || error.code !== 'UNSUPPORTED') throw error;
      if (phase !== 'before connect') throw error;
      this.#refused++;
    }
    const waits = peer === null ? [] : await this.#meet(child, peer, phase, role, kill);
    if (peer !== null) {
      const [lost] = await this.#inTime(`${phase}, ${role}: the loss is told`, told);
      if (lost !== peer) throw new Error('another peer is lost');
      await this.#inTime(`${phase}, ${role}: every promise settles`, Promise.all(waits));
    }
    await this.#letGo();
    const ms = performance.now() - killedMs;
    await exited;
    if (peer !== null) await this.#afterwards(peer);
    return {
      phase,
      role,
      ms,
      done: this.#done - before.done,
      lost: this.#lost - before.lost,
      refused: this.#refused - before.refused,
    };
  }

  async #meet(
    child: ChildProcess,
    peer: Peer,
    phase: Phase,
    role: Role,
    kill: () => void,
  ): Promise<Promise<unknown>[]> {
    if (phase === 'before connect') return [];
    const tell = (blow: Blow): boolean => child.send(blow);
    const answer = once(child, 'message');
    tell({ metadata: Buffer.from(this.agent.metadata()).toString('base64') });
    const [meeting] = (await this.#inTime('the peer meets us', answer)) as [Meeting];
    const random = this.#random;
    const blocks = [...this.#used.blocks];
    const generations = [...this.#used.generations];
    // The second half may be read.
    const readable = blocks.slice(HALF / 2);
    this.#pool.table!.fill(readable);
    this.#pool.table!.commit(readable.map(block => ({ block, hashLow: ++this.#tags, hashHigh: 2 })));
    const offer = { pool: this.#pool.id, blocks, generations };
    const notification = new Uint8Array(1);
    if (phase === 'after connect' || phase === 'between posts') {
      if (phase === 'between posts' && role === 'target') {
        const heard = once(this.agent, 'notification');
        tell({ offer });
        await this.#inTime('the peer works', heard);
      } else if (phase === 'between posts') {
        await Promise.all(this.#post(peer, role, meeting));
        if (role === 'read')
          this.#look(this.#used.blocks.subarray(0, BLOCKS / 2), block => this.#whose(block, meeting));
      }
      kill();
      return role === 'target' ? [] : this.#post(peer, role, meeting);
    }
    if (phase === 'renewing a lease') return this.#renewing(peer, role, meeting, tell, kill, readable);
    if (phase === 'in close') {
      const waits = role === 'target' ? [] : this.#post(peer, role, meeting, notification);
      if (role === 'target') tell({ offer });
      tell({ closes: true });
      await new Promise(resolve => setTimeout(resolve, randomInteger(random, 4)));
      kill();
      return waits;
    }
    if (role === 'target') {
      tell({ offer });
      if (phase !== 'posted, not begun') await this.#touched(phase === 'in mid-copy' ? 0 : HALF / 2 - 1);
      kill();
      return [];
    }
    if (phase === 'posted, not begun') child.kill('SIGSTOP');
    const waits = this.#post(
      peer,
      role,
      meeting,
      phase === 'copied, not notified' ? notification : undefined,
    );
    if (phase === 'in mid-copy') {
      const until = performance.now() + random() * 3;
      while (performance.now() < until);
    }
    // The first of them is done, and the peer is told so now.
    if (phase === 'copied, not notified') await waits[0];
    kill();
    return waits;
  }

  /** The content that a block of the first half was given by a read. */
  #whose(block: number, meeting: Meeting): number {
    return peerTag(meeting.blocks[this.#used.blocks.indexOf(block)]!);
  }

  /** Waits until the peer has written to the block of this place. */
  async #touched(at: number): Promise<void> {
    const block = this.#used.blocks[at]!;
    const last = (block + 1) * BLOCK_WORDS - 1;
    const until = performance.now() + WAIT_MS;
    while (this.#words[last] === this.#contents[block]) {
      if (performance.now() > until) throw new Error('the peer never writes');
      await turn();
    }
  }

  /** The one that owns the lease is who is read from; a target is it itself. */
  async #renewing(
    peer: Peer,
    role: Role,
    meeting: Meeting,
    tell: (blow: Blow) => boolean,
    kill: () => void,
    readable: number[],
  ): Promise<Promise<unknown>[]> {
    const rest = (): Promise<void> =>
      new Promise(resolve => setTimeout(resolve, randomInteger(this.#random, 260)));
    if (role === 'target') {
      const pinned = this.#pool.lease(readable, { ttlMs: 60_000, peer });
      const written = this.#pool.lease([...this.#used.blocks.subarray(0, HALF / 2)], { ttlMs: 60_000, peer });
      tell({ lease: pinned.id });
      tell({ lease: written.id });
      await rest();
      const ended = new Set<Lease>();
      const all = new Promise<void>((resolve, reject) => {
        this.agent.on('leaseExpired', (lease, why) => {
          if (why !== 'PEER_LOST') reject(new Error(`a lease ended as ${why}`));
          if (ended.add(lease).size === 2) resolve();
        });
      });
      kill();
      return [this.#inTime('leases end', all).finally(() => this.agent.removeAllListeners('leaseExpired'))];
    }
    peer.holdLease(meeting.lease);
    await rest();
    const waits = role === 'read' ? this.#post(peer, role, meeting) : [];
    kill();
    return waits;
  }

  /** All blocks come back, those that were worked on among them, and get new contents. */
  async #letGo(): Promise<void> {
    const table = this.#pool.table!;
    const codes = table.release(this.#used);
    if (codes.some(code => code !== 'OK')) throw new Error(`blocks cannot be released: ${codes}`);
    const until = performance.now() + WAIT_MS;
    while (table.stats().free !== HALF) {
      if (performance.now() > until) throw new Error(`blocks stay in use: ${JSON.stringify(table.stats())}`);
      await turn();
    }
    const used = this.#take(HALF);
    this.#look(this.#idle.blocks, block => this.#contents[block]!);
    // Those that were used hold canaries now, and the others are worked on.
    this.#used = this.#idle;
    this.#idle = used;
  }

  /** The dead one stays dead, and is forgotten. */
  async #afterwards(peer: Peer): Promise<void> {
    const plan = peer.plan({
      direction: 'write',
      local: { pool: this.#pool, blocks: [this.#used.blocks[0]!] },
      remote: { pool: 1, blocks: [0], generations: [1] },
    });
    const code = await plan.post().catch((error: TransferError) => error.code);
    if (code !== 'PEER_LOST') throw new Error(`a transfer to the dead ended as ${code}`);
    peer.disconnect();
    if (this.agent.inFlight !== 0) throw new Error('transfers are left');
  }
}
