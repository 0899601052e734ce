/** Lateness of this process's event loop, as `/metrics` of the plane state it: what a timer comes late. One per process. */
import { monitorEventLoopDelay } from 'node:perf_hooks';

/** As the plane's: with a coarser one, short delays are not seen. */
const RESOLUTION_MS = 10;

/** Starts to watch; `reset` begins a new window, `p99Ms` looks at the one so far. */
export function watchLag() {
  const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  delay.enable();
  return {
    reset: () => delay.reset(),
    // Node records the time between two timers, of which the resolution is no delay.
    p99Ms: () => (delay.count === 0 ? 0 : Math.max(0, delay.percentile(99) / 1e6 - RESOLUTION_MS)),
  };
}
