/**
 * LinkedClient (R5): the way to a worker that exists. A call goes over the worker's link where it has one that takes
 * calls, else over HTTP, as do bodies that would hold up the other streams of the link; so a link process that dies costs its running streams a retry and the next ones nothing.
 * Owned by one socket thread.
 */
import type { EngineCall } from '../client.js';
import type { AnswerClient, AnswerRequest, RowSink } from './contract.js';
import { LINK_LIMITS } from './link-protocol.js';

/** Calls that went each way since the start. */
export interface LinkedCounts {
  overLink: number;
  overHttp: number;
}

/** See the head of the file. */
export class LinkedClient implements AnswerClient {
  readonly counts: LinkedCounts = { overLink: 0, overHttp: 0 };
  readonly #links: { linkTo(url: string): AnswerClient | null };
  readonly #http: AnswerClient;

  /** @param links a LinkServer; @param http an EngineClient */
  constructor(links: { linkTo(url: string): AnswerClient | null }, http: AnswerClient) {
    this.#links = links;
    this.#http = http;
  }

  /** As `EngineClient.send`. */
  send(request: AnswerRequest, sink: RowSink): EngineCall {
    const isLong = request.body.length > LINK_LIMITS.bodyBytesMax;
    const link = isLong ? null : this.#links.linkTo(request.origin);
    this.counts[link === null ? 'overHttp' : 'overLink'] += 1;
    return (link ?? this.#http).send(request, sink);
  }
}
