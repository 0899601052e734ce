/** The selection policies by name (R4): the values of `models.<name>.policy`. Each pool thread makes its own selectors. */
import { ConfigError } from '../../errors.js';
import type { Selector } from '../contract.js';
import { createKv } from './kv.js';
import { createLeastLoaded } from './least-loaded.js';
import { createLeastRequests } from './least-requests.js';
import { createPowerOfTwo } from './power-of-two.js';
import { createRandomPolicy } from './random.js';
import { createRoundRobin } from './round-robin.js';
import { createTtft } from './ttft.js';
import { createTwoTier } from './two-tier.js';

const POLICIES = {
  ttft: createTtft,
  kv: createKv,
  'two-tier': createTwoTier,
  'least-loaded': createLeastLoaded,
  'least-requests': createLeastRequests,
  'power-of-two': createPowerOfTwo,
  'round-robin': createRoundRobin,
  random: createRandomPolicy,
} as const satisfies Record<string, () => Selector>;

/** Every policy that `createSelector` knows. */
export const POLICY_NAMES: readonly string[] = Object.freeze(Object.keys(POLICIES));

/** Makes a selector with fresh memory. Throws ConfigError for an unknown name; it lists the valid ones. */
export function createSelector(policy: string): Selector {
  if (!Object.hasOwn(POLICIES, policy)) {
    throw new ConfigError(`policy "${policy}" is unknown; it is one of ${POLICY_NAMES.join(', ')}`, {
      param: 'policy',
    });
  }
  return POLICIES[policy as keyof typeof POLICIES]();
}
