/**
 * WorkerLanes (R5): the worker side's connections to the further socket threads of one plane, which carry streams and
 * nothing else. Which there are is said anew each time that the plane admits the worker; between two of those, each lane
 * connects again by itself. Owned by the link process, one per plane.
 */
import { type LinkAddress, laneAddress, showLinkAddress } from './link-secret.js';
import type { WorkerLink } from './worker-link.js';

/** What lanes need of their plane. */
export interface WorkerLanesOptions {
  /** Of the plane. */
  readonly address: LinkAddress;
  /** Makes the link of a lane at its address; not started. */
  readonly open: (address: LinkAddress) => WorkerLink;
}

/** See the head of the file. */
export class WorkerLanes {
  readonly #options: WorkerLanesOptions;
  /** By address. */
  readonly #lanes = new Map<string, WorkerLink>();

  constructor(options: WorkerLanesOptions) {
    this.#options = options;
  }

  /** The plane has lanes at these ports, as in WELCOME: others close, with their streams. */
  set(ports: readonly number[]): void {
    const { address, open } = this.#options;
    const wanted = new Map(
      ports.map((port, index) => {
        const lane = laneAddress(address, index, port);
        return [showLinkAddress(lane), lane];
      }),
    );
    for (const [name, link] of this.#lanes) {
      if (wanted.has(name)) continue;
      this.#lanes.delete(name);
      void link.drain(0);
    }
    for (const [name, lane] of wanted) {
      if (this.#lanes.has(name)) continue;
      const link = open(lane);
      this.#lanes.set(name, link);
      link.start();
    }
  }

  /** As `WorkerLink.renew`, for each. */
  renew(): void {
    for (const link of this.#lanes.values()) link.renew();
  }

  /** As `WorkerLink.drain`, for all together. */
  async drain(deadlineMs: number): Promise<number> {
    const cut = await Promise.all([...this.#lanes.values()].map(link => link.drain(deadlineMs)));
    return cut.reduce((sum, streams) => sum + streams, 0);
  }
}
