/**
 * What a client says about where its request should go (R1): read from headers, or from the options of `generate()` and
 * `pick()`, and checked before it becomes part of an ASK. Also the headers by which an answer tells where it was made.
 * Pure; socket thread, and pool threads for the names.
 */
import type { HeaderList } from '../frontend/http/http-exchange.js';
import type { PlanPlacement, RoutingHints } from '../messages/records.js';

/** Header of a request that pins it to a worker, and of an answer that tells its worker: `http://host:port`. */
export const WORKER_HEADER = 'x-millrace-worker';
/** Request header; `routing`: the answer tells why its worker was chosen. */
export const DEBUG_HEADER = 'x-millrace-debug';
const DEBUG_ROUTING = 'routing';
/** Answer header: tokens of the prompt that the worker was expected to have in its cache. */
export const CACHED_HEADER = 'x-millrace-expected-cached-tokens';
/** Answer header, on request: policy and deciding figures in words. */
export const REASON_HEADER = 'x-millrace-reason';
/** Answer header, on request: JSON array of the best candidates, best first. */
export const CANDIDATES_HEADER = 'x-millrace-candidates';

/** Longest name of a session, in UTF-16 units. */
const SESSION_UNITS_MAX = 256;

/** What is wrong with a hint: the header or option, and what is allowed. */
export interface HintFault {
  readonly param: string;
  readonly message: string;
}

/** The hints as they were given, under the names that messages are to use; undefined: not given. */
export interface GivenHints {
  readonly worker: string | undefined;
  readonly session: string | undefined;
  readonly explains: boolean;
  readonly names: { readonly worker: string; readonly session: string };
}

/** The hints of a request's headers. `sessionHeader`: lower case; '': sessions are switched off. */
export function hintsOfHeaders(
  header: (name: string) => string | undefined,
  sessionHeader: string,
): RoutingHints | HintFault {
  return checkedHints({
    worker: header(WORKER_HEADER),
    session: sessionHeader === '' ? undefined : header(sessionHeader),
    explains: header(DEBUG_HEADER)?.trim().toLowerCase() === DEBUG_ROUTING,
    names: { worker: WORKER_HEADER, session: sessionHeader },
  });
}

/** Checks hints: a worker is an origin, a session a text of 1 to 256 characters. An empty one counts as not given. */
export function checkedHints({ worker, session, explains, names }: GivenHints): RoutingHints | HintFault {
  const origin = worker === undefined || worker === '' ? '' : originOf(worker);
  if (origin === null) {
    return {
      param: names.worker,
      message: `${names.worker} must be the address of a worker: http://host:port`,
    };
  }
  if (session !== undefined && session.length > SESSION_UNITS_MAX) {
    return {
      param: names.session,
      message: `${names.session} has ${session.length} characters; allowed: 1 to ${SESSION_UNITS_MAX}`,
    };
  }
  return { worker: origin, session: session ?? '', explains };
}

/** Headers of the answer of a request that was placed on `worker`. */
export function placementHeaders(worker: string, placement: PlanPlacement): HeaderList {
  const { cachedTokens, reason, candidates } = placement;
  const headers: [string, string][] = [
    [WORKER_HEADER, worker],
    [CACHED_HEADER, String(cachedTokens)],
  ];
  if (candidates === null) return headers;
  const told = candidates.map(candidate => ({ ...candidate, cost: rounded(candidate.cost) }));
  return [...headers, [REASON_HEADER, reason], [CANDIDATES_HEADER, JSON.stringify(told)]];
}

/** Two decimals are more than any cost means. */
const rounded = (cost: number | null): number | null => (cost === null ? null : Math.round(cost * 100) / 100);

function originOf(text: string): string | null {
  if (!URL.canParse(text)) return null;
  const { origin, protocol, pathname, search, username } = new URL(text);
  const isOrigin = (protocol === 'http:' || protocol === 'https:') && pathname === '/' && search === '';
  return isOrigin && username === '' ? origin : null;
}
