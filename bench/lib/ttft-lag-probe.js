/**
 * Loaded into a mock engine's process before its own code (`--import`): answers `lag` over the process's channel with the
 * lateness of the event loop since the last `lagReset`. Never keeps the process alive.
 */
import { watchLag } from './ttft-lag.js';

const lag = watchLag();
process.on('message', (/** @type {{ type: string }} */ { type }) => {
  if (type === 'lagReset') lag.reset();
  process.send?.({ p99Ms: lag.p99Ms() });
});
process.channel?.unref();
