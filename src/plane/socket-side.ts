/**
 * What the core and its socket threads say to each other, wherever a socket thread runs: in place (one, on the core's own
 * thread) or in threads of their own. Everything here is rare; requests know nothing of it.
 */
import type { Config } from '../config.js';
import type { Outage } from '../engines/health-contract.js';
import type { LinkTls } from '../engines/link/link-tls.js';
import type { MetricSamples } from '../frontend/metrics.js';
import type { ListedModel } from '../frontend/openai/models-response.js';
import type { World } from '../messages/records.js';
import type { DetokenizerTable } from '../preprocess/detokenizer.js';
import type { LogFields, LogLevel } from '../runtime/logger.js';
import type { AdminAnswer, AdminCall } from './admin.js';
import type { AttemptFailure } from './attempt.js';
import type { Decision } from './decision-log.js';
import type { PlaneMemory } from './plane-memory.js';
import type { LinkMemory } from './pool-link.js';
import type { TextModels } from './text-models.js';

/** What a socket thread is made from; structured-cloned, shared buffers shared. */
export interface SocketTask {
  readonly index: number;
  /** Socket threads of the process. */
  readonly threads: number;
  readonly config: Config;
  /** By the `tokenizer` of a PLAN. A thread of its own gets a copy. */
  readonly tables: ReadonlyMap<string, DetokenizerTable>;
  readonly loadMemory: SharedArrayBuffer;
  readonly ledgerMemory: SharedArrayBuffer;
  readonly boardMemory: SharedArrayBuffer;
  /** See WorkerActivity. */
  readonly activityMemory: SharedArrayBuffer;
  /** Its doorbell. */
  readonly bellMemory: SharedArrayBuffer;
}

/** The tasks of all socket threads of a plane. */
export function socketTasks(
  config: Config,
  { tables }: Pick<TextModels, 'tables'>,
  memory: PlaneMemory,
): SocketTask[] {
  const threads = memory.socketBells.length;
  return memory.socketBells.map((bellMemory, index) => ({
    index,
    threads,
    config,
    tables,
    loadMemory: memory.load,
    ledgerMemory: memory.ledger,
    boardMemory: memory.board,
    activityMemory: memory.activity,
    bellMemory,
  }));
}

/** A server that listens. */
export interface Listening {
  readonly port: number;
  readonly server: 'uws' | 'node';
  /** Why the server is not the first choice, or null. */
  readonly notice: string | null;
}

/** A socket thread, as the core sees it. */
export interface SocketSide {
  /** The fleet has changed. */
  setWorld(world: World, listed: readonly ListedModel[]): void;
  /** A worker went out of rotation; null: it is back. */
  setOutage(slot: number, generation: number, outage: Outage | null): void;
  /** Pool thread `index` has a new incarnation, reached through these rings. */
  attach(index: number, memory: LinkMemory): void;
  /** It is gone. Settled, or undefined at once, when its last answers have been taken. */
  lost(index: number): Promise<void> | undefined;
  /** Every slot of the pool is off. */
  poolIsOff(): void;
  /** What runs on the worker goes on at other ones, where it can. */
  leaveWorker(slot: number, generation: number): void;
  /** Opens the HTTP server; `isShared`: other threads listen on the same port. Rejects with ConfigError. */
  listen(host: string, port: number, isShared: boolean): Promise<Listening>;
  /** Opens its lane of worker links; resolves with the port, 0 for a path. Only with several threads. Rejects with ConfigError. */
  listenLane(): Promise<number>;
  /** Its lanes are taken with this certificate from now on. */
  renewTls(tls: LinkTls): void;
  /** Admits nothing more; resolves when no request is left or the deadline has passed. */
  drain(deadlineMs: number): Promise<void>;
  /** Tells the pool threads that no ASK will follow. */
  closeRings(): void;
  /** Closes connections, server and timers. */
  stop(): Promise<void>;
  /** Its metrics, to be summed with those of the other threads. */
  samples(): Promise<MetricSamples>;
  /** Its newest decisions, newest first, `count` at most. */
  decisions(count: number): Promise<readonly Decision[]>;
}

/** The core, as a socket thread sees it. */
export interface CoreSide {
  /** A worker failed a request. */
  reportFailure(slot: number, generation: number, failure: AttemptFailure): void;
  /** The metrics of the whole process. */
  metricsText(): Promise<string>;
  /** The newest decisions of the whole process. */
  decisions(count: number): Promise<readonly Decision[]>;
  /** Carries out what an operator asks for. */
  admin(call: AdminCall): Promise<AdminAnswer>;
  /** See Logger. */
  log(level: Exclude<LogLevel, 'silent'>, message: string, fields?: LogFields): void;
  /** An exception that no caller took: the text of its stack. */
  fault(text: string): void;
}
