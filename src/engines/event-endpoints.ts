/**
 * Where a server publishes its KV events or is polled for them, as this host reaches it (R5, probe). Engines name the endpoint that they bind,
 * often with a wildcard for the host and with the port of rank 0 alone. Pure.
 */
import type { RankEvents } from './contract.js';

const WILDCARD = /^(tcp:\/\/)(\*|0\.0\.0\.0|\[::\]|::)(:\d+)$/;
const PORT = /^(tcp:\/\/.*:)(\d+)$/;

/** `endpoint` with the host of the worker's `origin` in the place of a wildcard. */
export function reachableEndpoint(endpoint: string, origin: string): string {
  return endpoint.replace(WILDCARD, (_, scheme: string, __, port: string) => {
    return `${scheme}${new URL(origin).hostname}${port}`;
  });
}

/** The endpoint of a rank: a TCP port counts up by the rank, as vLLM and SGLang do. */
export function rankEndpoint(endpoint: string, rank: number): string {
  return endpoint.replace(PORT, (_, head: string, port: string) => `${head}${Number(port) + rank}`);
}

/** What a probe says of events that are asked for with POST at `path`: one source, however many ranks are behind it. */
export function polledEvents(origin: string, path: string): RankEvents[] {
  return [{ publish: `${origin}${path}`, replay: null, topic: '' }];
}
