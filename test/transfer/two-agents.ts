// Two agents of this thread that know each other, with a pool each: what the tests of transfer/ start from.

import { addonStatus, loadAddon } from '#millrace/runtime/addon.js';
import {
  createAgent,
  type Layout,
  type Peer,
  type Pool,
  probeTransports,
  type TransferAgent,
  TransferError,
  type TransportName,
} from '#millrace/transfer/index.js';

/** Options of a test that needs the addon. */
export const needsAddon = loadAddon() === null ? { skip: `no addon: ${addonStatus().reason}` } : {};

/** Options of a test that needs a transport. */
export function needs(transport: TransportName): { skip?: string } {
  if (loadAddon() === null) return needsAddon;
  const info = probeTransports().find(({ name }) => name === transport);
  if (info === undefined) return { skip: `this build has no ${transport}` };
  return info.available ? {} : { skip: `${transport}: ${info.reason}` };
}

/** Both sides of a connection; `peer` is how `near` sees `far`. */
export interface TwoAgents {
  readonly near: TransferAgent;
  readonly far: TransferAgent;
  readonly nearPool: Pool;
  readonly farPool: Pool;
  readonly nearBytes: Uint8Array;
  readonly farBytes: Uint8Array;
  readonly peer: Peer;
  readonly peerOfFar: Peer;
  close(): Promise<void>;
}

/** Opens them. `farLayout` defaults to `layout`. */
export function twoAgents(
  transport: TransportName,
  layout: Layout,
  blocks: number,
  farLayout = layout,
  blockTable = false,
): TwoAgents {
  const near = createAgent({ name: 'near', transports: [transport] });
  const far = createAgent({ name: 'far', transports: [transport] });
  const nearPool = near.createPool({ layout, blocks });
  const farPool = far.createPool({ layout: farLayout, blocks, blockTable });
  // Idle agents do not hold the process, and a test may wait for what only an agent will say.
  const alive = setInterval(() => undefined, 60_000);
  const peerOfFar = far.connect(near.metadata());
  const peer = near.connect(far.metadata());
  return {
    near,
    far,
    nearPool,
    farPool,
    nearBytes: new Uint8Array(nearPool.buffer),
    farBytes: new Uint8Array(farPool.buffer),
    peer,
    peerOfFar,
    async close() {
      clearInterval(alive);
      await near.close();
      await far.close();
    },
  };
}

/** The code that a promise of a transfer is rejected with, or 'OK'. */
export async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
    return 'OK';
  } catch (error) {
    if (error instanceof TransferError) return error.code;
    throw error;
  }
}
