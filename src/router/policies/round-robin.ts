/**
 * `round-robin` (R4): each model's workers in the order of their slots, one after the other. Every pool thread keeps its
 * own cursor, so over several of them the order holds per thread.
 */
import type { Selector } from '../contract.js';

/** Models whose cursor is kept; the one set longest ago goes first, and then starts over. */
const CURSORS_MAX = 1024;

/** Makes a selector with its own cursors. */
export function createRoundRobin(): Selector {
  const lastSlots = new Map<string, number>();
  return {
    policy: 'round-robin',
    usesPrefix: false,
    usesTiming: false,
    pick(request, { slots, count }) {
      const last = lastSlots.get(request.model) ?? -1;
      let first = 0;
      let next = -1;
      for (let row = 0; row < count; row += 1) {
        const slot = slots[row]!;
        if (slot < slots[first]!) first = row;
        if (slot > last && (next < 0 || slot < slots[next]!)) next = row;
      }
      const row = next < 0 ? first : next;
      lastSlots.delete(request.model);
      lastSlots.set(request.model, slots[row]!);
      if (lastSlots.size > CURSORS_MAX) lastSlots.delete(lastSlots.keys().next().value as string);
      return { row, reason: `round-robin: next after slot ${last}` };
    },
  };
}
