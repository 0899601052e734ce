// One end of a link: an agent on tcp with a pool of its own number, that does what it is told over the channel and says what
// has become of it. Times are of the monotonic clock, which all processes of a host share.
import { once } from 'node:events';
import { createAgent, type Peer, type TransferError } from '#millrace/transfer/index.js';

/** What a side is told to do; each is answered by one `SideAnswer`, and `flood` by another when it has ended. */
export interface SideOrder {
  /** Connect to the agent of this metadata (base64). */
  readonly connect?: string;
  /** Read all blocks of the peer's pool, write them back, and compare. */
  readonly move?: { readonly pool: number; readonly tag: number };
  /** Read and write without end. */
  readonly flood?: number;
}

/** What a side says. */
export interface SideAnswer {
  readonly metadata?: string;
  readonly pool?: number;
  readonly peer?: number;
  readonly moved?: string;
  readonly flooding?: boolean;
  /** How the flood ended: a code for each direction. */
  readonly ended?: string[];
  readonly lost?: string;
  readonly atMs?: number;
}

const BLOCKS = 16;
const LAYOUT = { kind: 'opaque', blockBytes: 256 * 1024 } as const;
const [, , listenHost, tag] = process.argv as [string, string, string, string];
const agent = createAgent({ name: `side ${tag}`, transports: ['tcp'], listenHost });
const own = agent.createPool({ layout: LAYOUT, blocks: BLOCKS });
const copy = agent.createPool({ layout: LAYOUT, blocks: BLOCKS });
const blocks = Array.from({ length: BLOCKS }, (_, i) => i);
new Uint8Array(own.buffer).fill(Number(tag));
const say = (answer: SideAnswer): boolean =>
  process.send!({ ...answer, atMs: Number(process.hrtime.bigint()) / 1e6 });
let peer: Peer | undefined;

const post = (direction: 'read' | 'write', pool: number): Promise<string> =>
  peer!
    .plan({ direction, local: { pool: copy, blocks }, remote: { pool, blocks } })
    .post({ integrity: 'full' })
    .then(
      () => 'OK',
      (error: TransferError) => error.code,
    );

async function move({ pool, tag }: { pool: number; tag: number }): Promise<string> {
  const bytes = new Uint8Array(copy.buffer).fill(0);
  const read = await post('read', pool);
  const isWhole = bytes.every(byte => byte === tag);
  const written = await post('write', pool);
  return `${read} ${isWhole} ${written}`;
}

async function flood(direction: 'read' | 'write', pool: number): Promise<string> {
  for (;;) {
    const code = await post(direction, pool);
    if (code !== 'OK') return code;
  }
}

agent.on('peerLost', (_, why) => say({ lost: why }));
process.on('message', async (order: SideOrder) => {
  if (order.connect !== undefined) {
    peer = agent.connect(Buffer.from(order.connect, 'base64'));
    say({ peer: peer.id });
  }
  if (order.move !== undefined) say({ moved: await move(order.move) });
  if (order.flood !== undefined) {
    say({ moved: await post('read', order.flood), flooding: true });
    say({ ended: await Promise.all((['read', 'write'] as const).map(way => flood(way, order.flood!))) });
  }
});
say({ metadata: Buffer.from(agent.metadata()).toString('base64'), pool: own.id });
await once(process, 'disconnect');
process.exit(0);
