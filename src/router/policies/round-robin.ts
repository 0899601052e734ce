/**
 * `round-robin` (R4): each model's workers in the order of their slots, one after the other. Every pool thread keeps its
 * own cursor, so over several of them the order holds per thread.
 */
import type { Candidate, Selector } from '../contract.js';

/** Models whose cursor is kept; the one set longest ago goes first, and then starts over. */
const CURSORS_MAX = 1024;

/** Makes a selector with its own cursors. */
export function createRoundRobin(): Selector {
  const lastSlots = new Map<string, number>();
  return {
    policy: 'round-robin',
    pick(request, candidates) {
      const last = lastSlots.get(request.model) ?? -1;
      let first = candidates[0] as Candidate;
      let next: Candidate | null = null;
      for (const candidate of candidates) {
        if (candidate.slot < first.slot) first = candidate;
        if (candidate.slot > last && (next === null || candidate.slot < next.slot)) next = candidate;
      }
      const chosen = next ?? first;
      lastSlots.delete(request.model);
      lastSlots.set(request.model, chosen.slot);
      if (lastSlots.size > CURSORS_MAX) lastSlots.delete(lastSlots.keys().next().value as string);
      return {
        slot: chosen.slot,
        generation: chosen.generation,
        reason: `round-robin: next after slot ${last}`,
      };
    },
  };
}
