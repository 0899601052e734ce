/**
 * A pool thread: the one endless task that a piscina thread runs. It drains the ASK ring of each socket thread in turn,
 * answers each ASK with a PLAN or a REJECT, and sleeps on its doorbell in between. Everything it shares is in the memory
 * that the task hands over; it ends once every socket thread has sent a CLOSE record, and an exception that is not about
 * one request ends it for the supervisor to replace.
 */
import { strict as assert } from 'node:assert';
import { parentPort } from 'node:worker_threads';
import { createAdapters } from '../engines/adapters.js';
import { EngineClient } from '../engines/client.js';
import { type EngineExtension, loadExtensions } from '../engines/extensions.js';
import type { Limits } from '../limits.js';
import { decodeAsk, decodeDone, decodeWorld } from '../messages/record-codec.js';
import { type Ask, RECORD_KIND, type World } from '../messages/records.js';
import type { ModelFolder } from '../preprocess/model-folder/model-folder.js';
import { loadTextModel, type TextModel } from '../preprocess/text-model.js';
import { Bell, BellRinger } from '../ring/bell.js';
import { RingMemory } from '../ring/ring-memory.js';
import { createDecider } from '../router/decide.js';
import { createHashers, type Hashers } from '../router/hashing/block-hasher.js';
import { Ledger } from '../router/ledger.js';
import { LoadTable } from '../router/load-table.js';
import { loadAddon } from '../runtime/addon.js';
import { systemClock } from '../runtime/clock.js';
import { seededRandom } from '../runtime/random.js';
import type { PrefixLink } from './ingest-side.js';
import { Planning } from './planning.js';
import { PoolLane } from './pool-lane.js';
import type { LinkMemory } from './pool-link.js';
import { openPrefixes, type PoolPrefixes } from './pool-prefixes.js';
import { ProcessBoard } from './process-board.js';
import { RemoteIds } from './remote-ids.js';

/** ASKs whose ids are being made on libuv's pool, at most: enough to keep its four threads busy. */
const PENDING_MAX = 8;

/** What a pool thread is given when it starts; structured-cloned, shared buffers shared. */
export interface PoolTask {
  readonly index: number;
  readonly threads: number;
  /** The rings of each socket thread; all under one epoch and with one doorbell of this thread. */
  readonly links: readonly LinkMemory[];
  readonly loadMemory: SharedArrayBuffer;
  readonly ledgerMemory: SharedArrayBuffer;
  readonly boardMemory: SharedArrayBuffer;
  /** Its way to the prefix index; null: there is none. */
  readonly prefixes: PrefixLink | null;
  readonly limits: Limits;
  /** The model folders that models may name, as read at start. */
  readonly folders: readonly ModelFolder[];
  /** Modules to load: Config.extensions. */
  readonly extensions: readonly string[];
  readonly seed: number;
}

class PoolThread {
  readonly #lanes: readonly PoolLane[];
  readonly #bell: Bell;
  readonly #planning: Planning;
  readonly #prefixes: PoolPrefixes | null;
  readonly #folders: readonly ModelFolder[];
  readonly #textModels = new Map<string, TextModel>();
  /** Rings this thread's own bell: an answer that comes by promise finds it asleep. */
  readonly #ownBell: BellRinger;
  /** Connections to workers, for prompt ids alone. */
  readonly #client: EngineClient;
  readonly #remoteIds: RemoteIds;
  /** ASKs whose ids are being made. */
  readonly #pending = new Set<Promise<void>>();
  #worldVersion = 0;
  #nextWorld: World | null = null;
  #closes = 0;

  constructor(
    task: PoolTask,
    hashers: Hashers,
    prefixes: PoolPrefixes | null,
    extensions: readonly EngineExtension[],
  ) {
    const { links, limits, loadMemory, ledgerMemory } = task;
    const { epoch, poolBell } = links[0]!;
    this.#folders = task.folders;
    this.#ownBell = new BellRinger(new RingMemory(poolBell));
    this.#bell = new Bell(new RingMemory(poolBell), systemClock);
    const loadTable = new LoadTable(loadMemory);
    const ledger = new Ledger({
      memory: ledgerMemory,
      loadTable,
      partition: { index: task.index, count: task.threads },
      addon: loadAddon(),
    });
    const discard = (reservation: number): void => void ledger.discard(reservation, epoch);
    const name = `ask ring ${task.index}`;
    this.#lanes = links.map(
      memory => new PoolLane({ memory, name, queueBytesMax: limits.ringQueueBytesMax, discard }),
    );
    this.#prefixes = prefixes;
    const adapters = createAdapters(extensions);
    this.#client = new EngineClient({ clock: systemClock, connectDeadlineMs: limits.connectDeadlineMs });
    this.#remoteIds = new RemoteIds({
      limits,
      clock: systemClock,
      adapters,
      post: (origin, path, json, deadlineMs, bytesMax) =>
        this.#client.post(origin, path, json, deadlineMs, bytesMax),
      onMissing: missing => parentPort?.postMessage(missing),
    });
    this.#planning = new Planning({
      limits,
      decider: createDecider({
        loadTable,
        ledger,
        ownerEpoch: epoch,
        random: seededRandom(task.seed),
        nowMs: () => systemClock.nowMs(),
        prefixes: prefixes?.reader ?? null,
        routed: prefixes?.routed ?? null,
      }),
      adapters,
      discard,
      hashers,
      remoteIds: this.#remoteIds,
    });
  }

  async run(): Promise<void> {
    try {
      await this.#serve();
    } finally {
      // A plan that is finished after its thread is reported gone would leave a reservation that nobody frees.
      await Promise.all(this.#pending);
      this.#prefixes?.close();
      await this.#client.close();
    }
  }

  async #serve(): Promise<void> {
    while (this.#closes < this.#lanes.length) {
      let taken = 0;
      for (const lane of this.#lanes) {
        // No ASK is taken while answers wait for room: that is how a slow socket thread slows itself.
        if (!lane.sendAnswers() || !this.#takesAsks) continue;
        // One message at a time: a WORLD has to be in force before the ASK behind it, and its models load by promise.
        taken += lane.takeOne((kind, key, bytes) => this.#take(lane, kind, key, bytes));
        if (this.#nextWorld !== null) await this.#enterWorld(this.#nextWorld);
      }
      if (taken === 0) await this.#bell.wait(() => this.#lanes.some(lane => lane.hasWork(this.#takesAsks)));
      // Events come as messages, which a busy loop would never see.
      else if (this.#prefixes?.isPosted === true) await new Promise(setImmediate);
    }
  }

  get #takesAsks(): boolean {
    // One that waits for a worker keeps no thread of libuv busy.
    return this.#pending.size - this.#remoteIds.asking < PENDING_MAX;
  }

  #take(lane: PoolLane, kind: number, key: number, bytes: Uint8Array): void {
    if (kind === RECORD_KIND.ask) this.#plan(lane, decodeAsk(bytes));
    else if (kind === RECORD_KIND.world) this.#offerWorld(decodeWorld(bytes));
    else if (kind === RECORD_KIND.done) this.#planning.learn(decodeDone(bytes));
    else if (kind === RECORD_KIND.close) this.#closes++;
    else assert.fail(`a socket thread never sends records of kind ${kind} (key ${key})`);
  }

  #plan(lane: PoolLane, ask: Ask): void {
    const answer = this.#planning.plan(ask);
    if (!(answer instanceof Promise)) {
      lane.answer(answer);
      return;
    }
    const done = answer.then(settled => {
      this.#pending.delete(done);
      lane.keep(settled);
      this.#ownBell.ring();
    });
    this.#pending.add(done);
  }

  /** Every socket thread passes each WORLD on: the first to bring it counts. */
  #offerWorld(world: World): void {
    if (world.version > this.#worldVersion) this.#nextWorld = world;
  }

  async #enterWorld(world: World): Promise<void> {
    this.#nextWorld = null;
    this.#worldVersion = world.version;
    for (const model of world.models) {
      if (model.tokenizer === null || this.#textModels.has(model.tokenizer)) continue;
      this.#textModels.set(model.tokenizer, await loadTextModel(model.tokenizer, this.#folders, systemClock));
    }
    this.#planning.setWorld(world, this.#textModels);
  }
}

/** The task that piscina runs; resolves after the CLOSE records. */
export default async function run(task: PoolTask): Promise<void> {
  const services = {
    limits: task.limits,
    board: new ProcessBoard(task.boardMemory),
    clock: systemClock,
    random: seededRandom(task.seed),
  };
  const prefixes = task.prefixes === null ? null : await openPrefixes(task.prefixes, services);
  const extensions = await loadExtensions(task.extensions, systemClock);
  await new PoolThread(task, await createHashers(loadAddon()), prefixes, extensions).run();
}
