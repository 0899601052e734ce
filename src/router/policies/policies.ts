/** The selection policies by name (R4): the values of `models.<name>.policy`. Each pool thread makes its own selectors. */
import { ConfigError } from '../../errors.js';
import type { Selector } from '../contract.js';
import { createLeastRequests } from './least-requests.js';
import { createRandomPolicy } from './random.js';
import { createRoundRobin } from './round-robin.js';

const POLICIES = {
  'round-robin': createRoundRobin,
  random: createRandomPolicy,
  'least-requests': createLeastRequests,
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
