/** What a configuration needs of a plane and of the machine (R1, R4): read once, before anything starts. */
import type { Config } from '../config.js';
import { ConfigError } from '../errors.js';
import { createSelector } from '../router/policies/policies.js';
import { addonStatus } from '../runtime/addon.js';
import { AUTO_EVENTS } from '../worker-config.js';
import { configuredWorkers } from './fleet.js';
import { linkAccess } from './link-access.js';

/** Whether anything of the configuration reads or feeds a prefix index. */
export function needsIndex(config: Config): boolean {
  const policies = [config.policy, ...Object.values(config.models).map(model => model.policy)];
  const named = (endpoint: string | null): boolean => endpoint !== null && endpoint !== AUTO_EVENTS;
  return (
    policies.some(policy => createSelector(policy).usesPrefix) ||
    configuredWorkers(config).some(({ kvEvents }) => named(kvEvents))
  );
}

/** Throws ConfigError where the configuration cannot be carried out on this machine. `isEmbedded`: not a process of its own. */
export function checkNeeds(config: Config, isEmbedded: boolean): void {
  const { socketThreads, httpServer, limits } = config;
  const slots = configuredWorkers(config).reduce((sum, { dpRanks }) => sum + dpRanks, 0);
  if (slots > limits.workersMax)
    throw new ConfigError(`more than ${limits.workersMax} workers; raise the limit workersMax`);
  // Throws where address, secret or certificate of worker links cannot be used.
  linkAccess(config);
  if (socketThreads === 1) return;
  const needs = (what: string): ConfigError =>
    new ConfigError(`socketThreads is ${socketThreads}; above 1 it needs ${what}`);
  if (httpServer === 'node') throw needs('uWebSockets.js: node:http cannot share a port between threads');
  const addon = addonStatus();
  if (!addon.loaded) throw needs(`the addon, without which one thread changes the ledger: ${addon.reason}`);
  if (isEmbedded) throw needs('a process of its own; an embedded plane has one');
}
