/**
 * The worker registry: which engine processes there are, in which slot, and in what state. A slot is a row of every
 * table that knows workers (load table, prefix index); a generation tells one tenant of a slot from the next, so that
 * news about a worker that is gone cannot touch its successor. Owned by one thread, the one that runs the health
 * monitor; other threads see workers through WORLD and the load table. Static list first; a discovery store later
 * calls the same `add` and `remove`.
 */
import { strict as assert } from 'node:assert';
import { ConfigError } from '../errors.js';
import type { WorkerView } from '../messages/records.js';

/**
 * probing: never answered a probe. ready: may be chosen. draining: finishes what it has; set by an operator and kept
 * whatever the health says. sleeping: its engine gives its memory back, or is on the way there, and takes nothing.
 * unavailable: was ready and does not answer.
 */
export type WorkerState = 'probing' | 'ready' | 'draining' | 'sleeping' | 'unavailable';

/** See engines/control-contract.ts. */
export type SleepLevel = 1 | 2;

/** What a probe taught about a worker; an engine's capabilities have these fields among others. */
export type WorkerFacts = Pick<
  WorkerView,
  'engine' | 'models' | 'blockSize' | 'totalBlocks' | 'returnsTokenIds' | 'answerModes' | 'foreignIds'
>;

/** Load that an engine reports of itself; null: it does not say. */
export interface ScrapedLoad {
  readonly running: number | null;
  readonly waiting: number | null;
  /** Share of the KV cache in use, 0 to 1. */
  readonly kvUsage: number | null;
}

/** Numbers of the states in the load table (router/load-descriptor.ts, SLOT_STATE): a worker that probes is not ready. */
export const STATE_WORDS = {
  absent: 0,
  ready: 1,
  draining: 2,
  sleeping: 2,
  unavailable: 3,
  probing: 3,
} as const;
type StateWord = (typeof STATE_WORDS)[keyof typeof STATE_WORDS];

/** The part of the load table that the registry writes. */
export interface SlotTable {
  install(slot: number, generation: number, state: StateWord): void;
  setState(slot: number, generation: number, state: StateWord): boolean;
  setScraped(slot: number, generation: number, load: ScrapedLoad, nowSeconds: number): boolean;
}

/** A worker as a configuration or a discovery store names it. */
export interface WorkerDeclaration {
  /** `http://host:port` or `https://host:port`, no path. */
  readonly url: string;
  /** Name of its engine, or `auto`: as its probe says. */
  readonly engine: string;
  /** Model ids to use it for; the rest of what it lists is ignored. All that it lists, when left out. */
  readonly models?: readonly string[];
  /** Data-parallel rank behind the URL that requests name; left out: the server is one worker. */
  readonly rank?: number | null;
}

/** A worker at one moment; a value, replaced at every change. */
export interface RegisteredWorker {
  readonly slot: number;
  readonly generation: number;
  /** Origin of the worker: the declared URL without a trailing slash. */
  readonly url: string;
  /** Data-parallel rank that requests name; null: the server is one worker. */
  readonly rank: number | null;
  /** As declared; that of `facts` is what answers there. */
  readonly engine: string;
  readonly state: WorkerState;
  /** How deep it sleeps or shall sleep; null: it does not. */
  readonly sleepLevel: SleepLevel | null;
  readonly declaredModels: readonly string[] | null;
  /** Null until the first probe. */
  readonly facts: WorkerFacts | null;
}

/** `facts` and `removed` change WORLD; `state` is seen through the load table. */
export interface RegistryChange {
  readonly kind: 'added' | 'facts' | 'state' | 'removed';
  /** The worker after the change; as it last was, when removed. */
  readonly worker: RegisteredWorker;
}

interface Entry {
  worker: RegisteredWorker;
  /** Told by KV events, for an engine whose probe does not say it. */
  learnedBlockSize: number | null;
  healthy: boolean;
  draining: boolean;
}

/** What a registry needs of its plane. */
export interface WorkerRegistryOptions {
  /** Slots, `workersMax` of limits.ts; equals the slots of the table. */
  readonly workersMax: number;
  readonly table: SlotTable;
  /** Called after each change, on the registry's thread. Must not throw. */
  readonly onChange: (change: RegistryChange) => void;
}

/** Gives workers their slots and generations and keeps their state. One thread owns it. */
export class WorkerRegistry {
  readonly #workersMax: number;
  readonly #table: SlotTable;
  readonly #onChange: (change: RegistryChange) => void;
  readonly #entries = new Map<number, Entry>();
  /** Slots whose worker was removed, the longest free one first. */
  readonly #freed: number[] = [];
  /** Generation of the last tenant by slot; its length is the number of slots ever used. */
  readonly #generations: number[] = [];

  constructor(options: WorkerRegistryOptions) {
    this.#workersMax = options.workersMax;
    this.#table = options.table;
    this.#onChange = options.onChange;
  }

  get size(): number {
    return this.#entries.size;
  }

  /**
   * Gives a worker a slot, in state probing. A slot that never had a worker goes first, then the one that is free for
   * longest: late news of the last tenant is then as old as can be. 'full': every slot is taken; 'duplicate': the URL
   * (with the rank) has a worker already. Throws ConfigError for a bad URL.
   */
  add(declaration: WorkerDeclaration): RegisteredWorker | 'full' | 'duplicate' {
    const url = originOf(declaration.url);
    const { rank = null } = declaration;
    for (const { worker } of this.#entries.values())
      if (worker.url === url && worker.rank === rank) return 'duplicate';
    const slot = this.#generations.length < this.#workersMax ? this.#generations.length : this.#freed.shift();
    if (slot === undefined) return 'full';
    const worker: RegisteredWorker = {
      slot,
      generation: this.#nextGeneration(slot),
      url,
      rank,
      engine: declaration.engine,
      state: 'probing',
      sleepLevel: null,
      declaredModels: declaration.models ?? null,
      facts: null,
    };
    this.#enter(worker, false);
    return worker;
  }

  /** Takes a worker out; its slot waits for reuse. False when that generation no longer has the slot. */
  remove(slot: number, generation: number): boolean {
    const entry = this.#entry(slot, generation);
    if (entry === null) return false;
    this.#entries.delete(slot);
    this.#freed.push(slot);
    this.#table.setState(slot, generation, STATE_WORDS.absent);
    this.#onChange({ kind: 'removed', worker: entry.worker });
    return true;
  }

  /** The worker in a slot, or null when that generation no longer has it. */
  get(slot: number, generation: number): RegisteredWorker | null {
    return this.#entry(slot, generation)?.worker ?? null;
  }

  /** The worker at a URL (with a rank), or null. */
  find(url: string, rank: number | null = null): RegisteredWorker | null {
    const origin = originOf(url);
    for (const { worker } of this.#entries.values())
      if (worker.url === origin && worker.rank === rank) return worker;
    return null;
  }

  /** All workers in the order of their slots. */
  list(): RegisteredWorker[] {
    return [...this.#entries.values()].map(entry => entry.worker).sort((a, b) => a.slot - b.slot);
  }

  /** The workers of WORLD: all that answered a probe, in whatever state, in the order of their slots. */
  views(): WorkerView[] {
    const views: WorkerView[] = [];
    for (const { slot, generation, url, rank, facts, declaredModels } of this.list()) {
      if (facts === null) continue;
      const models =
        declaredModels === null
          ? facts.models
          : facts.models.filter(model => declaredModels.includes(model.id));
      views.push({ slot, generation, url, rank, ...facts, models });
    }
    return views;
  }

  /**
   * Stores what a probe taught. Another engine, model or block size than before is another worker at the same address: it takes the
   * slot under a new generation, and the answer is false, as it is when that generation no longer has the slot.
   */
  setFacts(slot: number, generation: number, facts: WorkerFacts): boolean {
    const entry = this.#entry(slot, generation);
    if (entry === null) return false;
    const { worker } = entry;
    if (worker.facts !== null && isAnother(worker.facts, facts)) {
      this.#entries.delete(slot);
      this.#table.setState(slot, generation, STATE_WORDS.absent);
      this.#onChange({ kind: 'removed', worker });
      const successor = { ...worker, generation: this.#nextGeneration(slot), sleepLevel: null, facts: null };
      this.#enter({ ...successor, state: 'probing' }, entry.draining);
      return false;
    }
    this.#keepFacts(entry, { ...facts, blockSize: facts.blockSize ?? entry.learnedBlockSize });
    if (entry.healthy) this.#updateState(entry);
    return true;
  }

  /** Stores the block size that KV events have shown, where the probe says none. False as above. */
  learnBlockSize(slot: number, generation: number, blockSize: number): boolean {
    const entry = this.#entry(slot, generation);
    if (entry === null) return false;
    entry.learnedBlockSize = blockSize;
    const { facts } = entry.worker;
    if (facts !== null && facts.blockSize === null) this.#keepFacts(entry, { ...facts, blockSize });
    return true;
  }

  /** Says whether the worker answers; it is ready once it does and was probed. False as above. */
  setHealthy(slot: number, generation: number, healthy: boolean): boolean {
    const entry = this.#entry(slot, generation);
    if (entry === null) return false;
    entry.healthy = healthy;
    this.#updateState(entry);
    return true;
  }

  /** Lets a worker finish what it has: nothing new is sent to it until it is removed. False as above. */
  drain(slot: number, generation: number): boolean {
    const entry = this.#entry(slot, generation);
    if (entry === null) return false;
    entry.draining = true;
    this.#updateState(entry);
    return true;
  }

  /** Has a worker count as asleep, whatever the health says, or (null) as awake. False as above. */
  setSleeping(slot: number, generation: number, sleepLevel: SleepLevel | null): boolean {
    const entry = this.#entry(slot, generation);
    if (entry === null) return false;
    entry.worker = { ...entry.worker, sleepLevel };
    this.#updateState(entry);
    return true;
  }

  /** Writes what a scrape found into the load table. False as above. */
  setScraped(slot: number, generation: number, load: ScrapedLoad, nowSeconds: number): boolean {
    if (this.#entry(slot, generation) === null) return false;
    return this.#table.setScraped(slot, generation, load, nowSeconds);
  }

  #entry(slot: number, generation: number): Entry | null {
    const entry = this.#entries.get(slot);
    return entry !== undefined && entry.worker.generation === generation ? entry : null;
  }

  #nextGeneration(slot: number): number {
    const generation = (this.#generations[slot] ?? 0) + 1;
    this.#generations[slot] = generation;
    return generation;
  }

  #enter(worker: RegisteredWorker, draining: boolean): void {
    const entry = { worker, learnedBlockSize: null, healthy: false, draining };
    this.#entries.set(worker.slot, entry);
    this.#table.install(worker.slot, worker.generation, STATE_WORDS.probing);
    this.#onChange({ kind: 'added', worker });
    if (draining) this.#updateState(entry);
  }

  #keepFacts(entry: Entry, facts: WorkerFacts): void {
    const { engine, models, blockSize, totalBlocks, returnsTokenIds, answerModes, foreignIds } = facts;
    const kept: WorkerFacts = {
      engine,
      models,
      blockSize,
      totalBlocks,
      returnsTokenIds,
      ...(answerModes === undefined ? {} : { answerModes }),
      foreignIds,
    };
    if (JSON.stringify(kept) === JSON.stringify(entry.worker.facts)) return;
    entry.worker = { ...entry.worker, facts: kept };
    this.#onChange({ kind: 'facts', worker: entry.worker });
  }

  #updateState(entry: Entry): void {
    const { worker } = entry;
    let state: WorkerState = entry.healthy ? 'ready' : 'unavailable';
    if (worker.facts === null) state = 'probing';
    else if (worker.sleepLevel !== null) state = 'sleeping';
    if (entry.draining) state = 'draining';
    if (state === worker.state) return;
    entry.worker = { ...worker, state };
    const held = this.#table.setState(worker.slot, worker.generation, STATE_WORDS[state]);
    assert(held, 'the load table and the registry name the same tenant of a slot');
    this.#onChange({ kind: 'state', worker: entry.worker });
  }
}

/** Whether a worker that answers so is not the one from before: another engine, none of its models, or other KV blocks. */
function isAnother(before: WorkerFacts, now: WorkerFacts): boolean {
  if (before.engine !== now.engine) return true;
  const known = new Set(before.models.map(model => model.id));
  if (!now.models.some(model => known.has(model.id))) return true;
  return before.blockSize !== null && now.blockSize !== null && before.blockSize !== now.blockSize;
}

function originOf(url: string): string {
  let parsed: URL;
  try {
    parsed = new URL(url);
  } catch {
    throw new ConfigError(`worker url "${url}" is not a URL: expected http://host:port`);
  }
  if (parsed.protocol !== 'http:' && parsed.protocol !== 'https:') {
    throw new ConfigError(`worker url "${url}" must begin with http:// or https://`);
  }
  if (parsed.username !== '' || parsed.password !== '') {
    throw new ConfigError(`worker url of "${parsed.host}" must not hold credentials`);
  }
  if (parsed.pathname !== '/' || parsed.search !== '' || parsed.hash !== '') {
    throw new ConfigError(`worker url "${url}" must not have a path, query or fragment`);
  }
  return parsed.origin;
}
