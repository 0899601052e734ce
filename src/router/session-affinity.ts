/**
 * Session affinity (R4): the worker of a session by rendezvous hashing. Each worker has a score of its own for the session
 * and the highest wins, so all threads and hosts agree without a table, and a worker that comes or goes moves only its own
 * share of the sessions. Pure.
 */
import type { Candidates, Decision } from './contract.js';

/** The candidate of the session; null without a session: the policy picks. */
export function pickBySession(session: string | null, { count, slots }: Candidates): Decision | null {
  if (session === null) return null;
  const key = hashText(session);
  let row = 0;
  let best = -1;
  for (let at = 0; at < count; at += 1) {
    const score = mix(key ^ mix(slots[at]! + 1));
    if (score > best) {
      best = score;
      row = at;
    }
  }
  return { row, reason: `session: slot ${slots[row]} of ${count}` };
}

/** FNV-1a over UTF-16 code units. */
function hashText(text: string): number {
  let hash = 0x811c9dc5;
  for (let at = 0; at < text.length; at += 1) hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193);
  return hash;
}

/** The finaliser of MurmurHash3. */
function mix(value: number): number {
  let mixed = value ^ (value >>> 16);
  mixed = Math.imul(mixed, 0x85ebca6b);
  mixed ^= mixed >>> 13;
  mixed = Math.imul(mixed, 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}
