/**
 * How a prompt that one worker has computed reaches the worker that answers (R5): a protocol turns the engine call of a
 * request into two, one for prefill and one for decode, and makes of the first answer what the second call needs. What
 * engines tell each other is copied as bytes, never understood. Pure, without state: `stage` runs on pool threads, `next`
 * on socket threads.
 */
import type { DisaggProtocolName } from '../../messages/disagg.js';
import type { TokenRequest } from '../../messages/token-request.js';
import type { AbortCall, EncodedCall } from '../contract.js';

/** Fields by which a request would name workers and memory of the fleet: a client may not send them. */
export const PEER_FIELDS = [
  'kv_transfer_params',
  'bootstrap_host',
  'bootstrap_port',
  'bootstrap_room',
  'disaggregated_params',
] as const;

/** How a decode worker reaches a prefill worker. */
export interface PrefillPeer {
  /** Host of the bootstrap server as decode workers reach it; an IPv6 address without brackets. */
  readonly host: string;
  readonly port: number;
  /** Mooncake: id of the engine behind it; null: not known. */
  readonly engineId: string | null;
  /** TensorRT-LLM, generation first: where the context server tells of its transceiver; null: not known. */
  readonly infoEndpoint: string | null;
  /** Data-parallel rank that does the prefill; null: the server is one worker. */
  readonly rank: number | null;
}

/** What two staged calls are made from. */
export interface StageInput {
  /** The call for each worker as if it did all of the work; the same object where both workers are asked alike. */
  readonly prefill: EncodedCall;
  readonly decode: EncodedCall;
  readonly peer: PrefillPeer;
  /** Name of the hand-over: no other one, nor another attempt of this one, has it. */
  readonly key: string;
  /** The same as a number from 0 to 2^53 − 1025. */
  readonly room: number;
}

/** Bodies of the two calls; method, path and head stay as they were encoded. Fresh bytes, but for an unchanged one. */
export interface StagedBodies {
  readonly prefill: Uint8Array;
  readonly decode: Uint8Array;
}

/**
 * What follows from the answer to a prefill.
 * - splice: `bytes` go into the decode body at FRONT. `cachedTokens`: of the prompt, on the prefill worker; null: not said.
 * - alone: nothing to hand over; decode does it all, with the body that it has.
 * - complete: the answer is over with its first token; `answer` is the whole of it, as for a request without stream.
 * - malformed: not what the engine promised; `why` in words.
 */
export type NextStep =
  | { readonly kind: 'splice'; readonly bytes: Uint8Array; readonly cachedTokens: number | null }
  | { readonly kind: 'alone' }
  | { readonly kind: 'complete'; readonly answer: Uint8Array }
  | { readonly kind: 'malformed'; readonly why: string };

/** One protocol. */
export interface DisaggProtocol {
  readonly name: DisaggProtocolName;
  /** Name of the engine whose workers speak it. */
  readonly engine: string;
  /** Blocks of the prefill worker may have fewer tokens than those of the decode worker; else they must be alike. */
  readonly takesSmallerBlocks: boolean;
  /** Engines of different versions refuse each other's KV; else it is worth a warning. */
  readonly needsSameVersion: boolean;
  /** Its decode workers can compute prompts, too; else every prompt needs a prefill worker. */
  readonly decodeComputes: boolean;
  /** sequential: decode is asked with what prefill has answered. parallel: both at once; the prefill answer says nothing. */
  readonly order: 'sequential' | 'parallel';
  /**
   * What to do with an engine call that nobody wants any more. deferred: it runs until the KV has been handed over, so that
   * both sides free it as they always do. atOnce: both connections are closed.
   */
  readonly abort: 'deferred' | 'atOnce';
  /**
   * The call that lets a worker go that waits for the other one, which has failed or is not wanted any more, besides closing
   * the connection; null: none. `requestId`: as it was encoded.
   */
  releaseCall(requestId: string): AbortCall | null;
  /** Why a request cannot be split, in words; null: it can. */
  rulesOut(request: TokenRequest): string | null;
  stage(input: StageInput): StagedBodies;
  /** What follows from the whole answer of a prefill, status 200; sequential protocols only. */
  next(answer: Uint8Array): NextStep;
}

/**
 * What an answer of a prefill worker with this status means.
 * - answered: see `next`.
 * - refused: the request itself is wrong; decode would say the same, so the client gets this answer.
 * - failed: the worker's trouble: decode does it all.
 */
export function prefillVerdict(status: number): 'answered' | 'refused' | 'failed' {
  if (status === 200) return 'answered';
  // 401, 403 and 407 are about the credentials between us and the worker, 408 and 429 about its load.
  if ([401, 403, 407, 408, 429].includes(status)) return 'failed';
  return status >= 400 && status < 500 ? 'refused' : 'failed';
}

/** The rules that all protocols share: one answer to one prompt, and nothing of the prompt in the answer. */
export function ruledOutByAll(request: TokenRequest): string | null {
  if (request.sampling.n > 1) return 'n is above 1: the prompt is handed over once';
  const { prompt_logprobs: promptLogprobs, echo, use_beam_search: beams } = request.raw;
  if ((promptLogprobs ?? null) !== null) return 'prompt_logprobs come from where the prompt is computed';
  if (echo === true) return 'echo is done where the prompt is computed';
  if (beams === true) return 'beams are several answers';
  return null;
}
