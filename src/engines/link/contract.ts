/**
 * What an attempt asks of its way to a worker, whichever it is: EngineClient (HTTP) or LinkClient (a worker link) (R5).
 * Smallest on purpose: start a call, then pause, resume and abort it. Runs on the socket thread.
 */
import type { AnswerSink, EngineCall, EngineRequest } from '../client.js';
import type { FrameBatch, WorkerCapabilities } from '../contract.js';

/** A request, and whether its answer may come as rows of ids instead of bytes (token mode). */
export interface AnswerRequest extends EngineRequest {
  readonly wantsRows: boolean;
}

/** An AnswerSink that also takes rows. Over HTTP `onRows` is never called: the bytes come through `onData`. */
export interface RowSink extends AnswerSink {
  /**
   * Frames that were decoded beside the engine: choice, ids and finish reason and nothing else, in order with the bytes
   * of `onData`, which are whole frames then. The batch is valid during the call.
   */
  onRows(batch: FrameBatch): void;
}

/** Starts calls to workers; EngineClient and LinkClient are such. */
export interface AnswerClient {
  /** As `EngineClient.send`. */
  send(request: AnswerRequest, sink: RowSink): EngineCall;
}

/** What of a probe a worker side passes on; `dpRanks`: as it was configured, where the engine does not say. */
export type LinkedCapabilities = Pick<
  WorkerCapabilities,
  'engine' | 'version' | 'models' | 'blockSize' | 'totalBlocks' | 'returnsTokenIds' | 'dpRanks'
>;

/** What a worker side tells of its engine when it registers. */
export interface LinkedWorker {
  /** Name of the worker, unique in its fleet. */
  readonly id: string;
  /** Origin by which the plane knows the engine, for plain HTTP too. */
  readonly url: string;
  readonly capabilities: LinkedCapabilities;
}

/** States of an engine as its link process sees it. */
export const ENGINE_STATES = ['down', 'ready'] as const;
/** One of ENGINE_STATES. */
export type EngineState = (typeof ENGINE_STATES)[number];

/** How an engine does; null: it does not say. Told at every change and every scrape. */
export interface EngineHealth {
  readonly state: EngineState;
  readonly running: number | null;
  readonly waiting: number | null;
  /** Share of the KV cache in use, 0 to 1. */
  readonly kvUsage: number | null;
  /** Milliseconds that the last canary, a request of one token, took; null: none was sent, or it failed. */
  readonly canaryMs: number | null;
  /** Canaries that failed since the last one that did not. */
  readonly canaryFailures: number;
}
