/**
 * Another agent (K2, K3): where its blocks are named, planned and moved. A plan is two lists of blocks as the words that the
 * addon takes, made once and posted any number of times; which bytes that means is worked out natively, once per pair of
 * layouts. On the agent's JS thread; bytes are moved by its progress thread.
 */
import { blockList, bytes, choice, options, wholeNumber } from './checks.js';
import {
  NOTIFICATION_BYTES_MAX,
  TRANSFER_BLOCKS_MAX,
  TRANSFER_REQUEST,
  TRANSFER_REQUEST_WORDS,
  TRANSPORTS,
} from './descriptor.js';
import { invalid, TransferError } from './errors.js';
import type { Flights, TransferResult } from './flights.js';
import { putTwoWords } from './layout.js';
import type { NativeAgent } from './native-agent.js';
import type { Pool } from './pool.js';

/** A transport by name. */
export type TransportName = (typeof TRANSPORTS)[number];

/** A range of layers, or of heads by their number in the whole model. */
export interface PlanRange {
  readonly first: number;
  readonly count: number;
}

/** What is to be moved: block i of one side to block i of the other. */
export interface PlanOptions {
  /** 'read': from the peer to here; 'write': from here to the peer. */
  readonly direction: 'read' | 'write';
  readonly local: { readonly pool: Pick<Pool, 'id'>; readonly blocks: Uint32Array | readonly number[] };
  readonly remote: {
    /** The pool's id at the peer. */
    readonly pool: number;
    readonly blocks: Uint32Array | readonly number[];
    /** Of the remote blocks; required where the peer's pool has a block table. */
    readonly generations?: Uint32Array | readonly number[];
  };
  /** Default: all. */
  readonly layers?: PlanRange;
  /** Default: those that both sides have. */
  readonly heads?: PlanRange;
  /** Default: the cheapest that reaches the peer. */
  readonly transport?: TransportName;
}

/** How one posting of a plan is done. */
export interface PostOptions {
  /**
   * Told to the peer once all bytes are in place (writes) or taken (reads); at most NOTIFICATION_BYTES_MAX bytes. The peer
   * must be connected to this agent too.
   */
  readonly notification?: Uint8Array;
  /** 0 (first) to 255. Default 0. */
  readonly priority?: number;
  /** From now, 1 ms to an hour. Default: none but the loss of the peer. */
  readonly deadlineMs?: number;
  /** Checksums of all blocks, of one in sixteen, or of none (the default). */
  readonly integrity?: 'off' | 'sample' | 'full';
  /** Whether the blocks are read soon after, which decides how they are stored. Default 'unknown'. */
  readonly reader?: 'unknown' | 'soon' | 'later';
  /** The peer's lease on its blocks, renewed while the transfer runs. */
  readonly lease?: number;
  /** Cancels the transfer. */
  readonly signal?: AbortSignal;
}

const RANGE_MAX = 4096;
const DEADLINE_MS_MAX = 3_600_000;
const DIRECTIONS = ['read', 'write'];
const INTEGRITIES = ['off', 'sample', 'full'];
const READERS = ['unknown', 'soon', 'later'];
const POST_KEYS = ['notification', 'priority', 'deadlineMs', 'integrity', 'reader', 'lease', 'signal'];
/** The defaults of all options. */
export const NO_OPTIONS: PostOptions = {};

function putRange(words: Uint32Array, at: number, field: string, range: PlanRange | undefined): void {
  if (range === undefined) return;
  options(field, range, ['first', 'count']);
  words[at] = wholeNumber(`${field}.first`, range.first, 0, RANGE_MAX - 1);
  words[at + 1] = wholeNumber(`${field}.count`, range.count, 1, RANGE_MAX);
}

/** The words of a request for a plan, with the defaults of posting. Throws INVALID. */
export function requestWords(peer: number, plan: PlanOptions): Uint32Array {
  options('plan', plan, ['direction', 'local', 'remote', 'layers', 'heads', 'transport']);
  options('local', plan.local, ['pool', 'blocks']);
  options('remote', plan.remote, ['pool', 'blocks', 'generations']);
  const local = blockList('local.blocks', plan.local.blocks, 1, TRANSFER_BLOCKS_MAX);
  const count = local.length;
  const remote = blockList('remote.blocks', plan.remote.blocks, count, count);
  const given = plan.remote.generations;
  const generations = given === undefined ? null : blockList('remote.generations', given, count, count);
  const words = new Uint32Array(TRANSFER_REQUEST_WORDS + count * (generations === null ? 2 : 3));
  words[TRANSFER_REQUEST.peer] = peer;
  words[TRANSFER_REQUEST.direction] = choice('direction', plan.direction, DIRECTIONS);
  words[TRANSFER_REQUEST.localPool] = wholeNumber('local.pool.id', plan.local.pool?.id, 0, 2 ** 32 - 1);
  words[TRANSFER_REQUEST.remotePool] = wholeNumber('remote.pool', plan.remote.pool, 0, 2 ** 32 - 1);
  putRange(words, TRANSFER_REQUEST.firstLayer, 'layers', plan.layers);
  putRange(words, TRANSFER_REQUEST.firstHead, 'heads', plan.heads);
  words[TRANSFER_REQUEST.transport] =
    plan.transport === undefined ? 0 : 1 + choice('transport', plan.transport, TRANSPORTS);
  words[TRANSFER_REQUEST.blocks] = count;
  words[TRANSFER_REQUEST.generations] = generations === null ? 0 : 1;
  words.set(local, TRANSFER_REQUEST_WORDS);
  words.set(remote, TRANSFER_REQUEST_WORDS + count);
  if (generations !== null) words.set(generations, TRANSFER_REQUEST_WORDS + 2 * count);
  return words;
}

/** Writes how a request is posted into its head; returns the signal. Throws INVALID. */
export function putPostOptions(words: Uint32Array, given: PostOptions): AbortSignal | undefined {
  if (given === NO_OPTIONS) {
    words.fill(0, TRANSFER_REQUEST.integrity, TRANSFER_REQUEST.transport);
    words[TRANSFER_REQUEST.deadlineMs] = 0;
    putTwoWords(words, TRANSFER_REQUEST.lease, 0);
    return undefined;
  }
  options('post', given, POST_KEYS);
  const { deadlineMs, notification, signal } = given;
  words[TRANSFER_REQUEST.integrity] = choice('integrity', given.integrity ?? 'off', INTEGRITIES);
  words[TRANSFER_REQUEST.reader] = choice('reader', given.reader ?? 'unknown', READERS);
  words[TRANSFER_REQUEST.priority] = wholeNumber('priority', given.priority ?? 0, 0, 255);
  words[TRANSFER_REQUEST.deadlineMs] =
    deadlineMs === undefined ? 0 : wholeNumber('deadlineMs', deadlineMs, 1, DEADLINE_MS_MAX);
  putTwoWords(
    words,
    TRANSFER_REQUEST.lease,
    wholeNumber('lease', given.lease ?? 0, 0, Number.MAX_SAFE_INTEGER),
  );
  if (notification !== undefined) bytes('notification', notification, 1, NOTIFICATION_BYTES_MAX);
  if (signal !== undefined && !(signal instanceof AbortSignal)) invalid('signal', signal, 'an AbortSignal');
  return signal;
}

/** Two lists of blocks, ready to be posted. Keeps nothing alive and needs no closing. */
export class Plan {
  readonly #native: NativeAgent;
  readonly #flights: Flights;
  readonly #words: Uint32Array;

  constructor(native: NativeAgent, flights: Flights, peer: number, plan: PlanOptions) {
    this.#native = native;
    this.#flights = flights;
    this.#words = requestWords(peer, plan);
  }

  /** Blocks of either list. */
  get blocks(): number {
    return this.#words[TRANSFER_REQUEST.blocks]!;
  }

  /**
   * Begins the transfer. The promise settles when it has completed, however it ended, and not before: from then on no byte of
   * its blocks is touched any more, here or at the peer. Rejected with a TransferError; FULL means that nothing was begun and
   * that there is room after a completion.
   */
  post(given: PostOptions = NO_OPTIONS): Promise<TransferResult> {
    return new Promise((resolve, reject) => {
      const signal = putPostOptions(this.#words, given);
      if (signal?.aborted)
        throw new TransferError('CANCELLED', 'aborted before it began', { cause: signal.reason });
      const native = this.#native;
      const id = native.addon.transferSubmit(native.handle, this.#words, given.notification ?? null);
      if (id < 0) native.pass('transfer', id);
      this.#flights.add(id, resolve, reject, signal);
    });
  }
}

/** An agent that this one is connected to. */
export class Peer {
  /** Its number here; another one when it comes back under a new epoch. */
  readonly id: number;
  readonly #native: NativeAgent;
  readonly #flights: Flights;

  constructor(native: NativeAgent, flights: Flights, id: number) {
    this.#native = native;
    this.#flights = flights;
    this.id = id;
  }

  /** Checks the lists and makes them ready; whether the layouts fit is said when it is posted. Throws INVALID. */
  plan(plan: PlanOptions): Plan {
    return new Plan(this.#native, this.#flights, this.id, plan);
  }

  /** Sends bytes to the peer's 'notification', in the order of the calls. Throws FULL when too many are on their way. */
  notify(notification: Uint8Array): void {
    bytes('notification', notification, 0, NOTIFICATION_BYTES_MAX);
    const { addon, handle } = this.#native;
    this.#native.pass('notify', addon.transferNotify(handle, this.id, notification));
  }

  /** Renews a lease of the peer until `dropLease`, or until the peer is lost. */
  holdLease(lease: number): void {
    const [low, high] = leaseWords(lease);
    const { addon, handle } = this.#native;
    this.#native.pass('holdLease', addon.transferHoldLease(handle, this.id, low, high));
  }

  /** Tells the peer that its lease is needed no more. */
  dropLease(lease: number): void {
    const [low, high] = leaseWords(lease);
    const { addon, handle } = this.#native;
    this.#native.pass('dropLease', addon.transferDropLease(handle, this.id, low, high));
  }

  /** Ends the connection; its transfers end as CANCELLED. */
  disconnect(): void {
    const { addon, handle } = this.#native;
    this.#native.pass('disconnect', addon.transferRemovePeer(handle, this.id));
  }
}

function leaseWords(lease: number): [number, number] {
  const words = new Uint32Array(2);
  putTwoWords(words, 0, wholeNumber('lease', lease, 1, Number.MAX_SAFE_INTEGER));
  return [words[0]!, words[1]!];
}
