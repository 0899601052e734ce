/**
 * What bench/transfer.js measures: the shapes, what each is compared with, and what it has to reach. One entry for every
 * figure of the transfer engine that a machine without a GPU can show.
 */

const KIB = 1024;
const MIB = 1024 * KIB;

/**
 * @typedef {object} Case
 * @property {string} figure  Its name in the list of figures.
 * @property {string} transport
 * @property {'read' | 'write'} op
 * @property {number} blockBytes
 * @property {number} batchBlocks  Blocks of one transfer.
 * @property {number} poolBatches  Batches that the pool has room for.
 * @property {number} roundBatches  Transfers of one round.
 * @property {'unknown' | 'soon' | 'later'} reader
 * @property {'off' | 'full'} [integrity]
 * @property {string} yardstick  One of those in bench/transfer.js.
 * @property {number | null} target  Least ratio to the yardstick; null: none was set.
 */

const read = { op: 'read', reader: 'unknown', target: null };

/** @param {number} batchBytes @param {number} target */
const shmLater = (batchBytes, target) => ({
  ...read,
  figure: `shm, random blocks of 16 KiB, no immediate reader, ${batchBytes / MIB} MiB`,
  transport: 'shm',
  reader: 'later',
  blockBytes: 16 * KIB,
  batchBlocks: batchBytes / (16 * KIB),
  poolBatches: Math.max(2, (512 * MIB) / batchBytes),
  roundBatches: Math.max(2, (128 * MIB) / batchBytes),
  yardstick: 'memcpy',
  target,
});

/** @param {number} batchBytes */
const shmSoon = batchBytes => ({
  ...shmLater(batchBytes, 0.97),
  figure: `shm, random blocks of 16 KiB, immediate reader, ${batchBytes / MIB} MiB`,
  reader: 'soon',
  yardstick: 'memcpy and read',
});

/**
 * Pools here are the agent's own memory, which UCX reaches by copies through its buffers or by cma. What it does with memory that
 * it allocated and mapped itself (posix), native/bench measures, as no pool of this API is such memory: so no target here.
 * @param {number} blockBytes
 */
const ucx = blockBytes => ({
  ...read,
  figure: `ucx, pools of the agent, batches of ${blockBytes / KIB} KiB`,
  transport: 'ucx',
  blockBytes,
  batchBlocks: (4 * MIB) / blockBytes,
  poolBatches: 32,
  roundBatches: 16,
  yardstick: 'memcpy',
});

/** @param {'shm' | 'tcp'} transport @param {'unknown' | 'later'} reader @param {number} target */
const integrity = (transport, reader, target) => ({
  ...read,
  figure: `${transport}, integrity full against off${reader === 'later' ? ', no immediate reader' : ''}`,
  transport,
  reader,
  integrity: 'full',
  blockBytes: 16 * KIB,
  batchBlocks: 256,
  poolBatches: 64,
  roundBatches: 24,
  yardstick: 'integrity off',
  target,
});

const tcp = { ...read, transport: 'tcp', op: 'write' };

/** @type {Case[]} */
export const CASES = [
  shmLater(MIB, 1.15),
  shmLater(4 * MIB, 1.15),
  shmLater(256 * MIB, 1.25),
  shmSoon(MIB),
  shmSoon(4 * MIB),
  shmSoon(256 * MIB),
  {
    ...read,
    figure: 'shm, 40,960 x 4 KiB against one contiguous transfer',
    transport: 'shm',
    reader: 'later',
    blockBytes: 4 * KIB,
    batchBlocks: 40_960,
    poolBatches: 3,
    roundBatches: 2,
    yardstick: 'contiguous',
    target: 0.7,
  },
  integrity('shm', 'unknown', 0.8),
  integrity('shm', 'later', 0.6),
  {
    ...read,
    figure: 'cma, blocks of 1 MiB',
    transport: 'cma',
    blockBytes: MIB,
    batchBlocks: 64,
    poolBatches: 4,
    roundBatches: 4,
    yardstick: 'memcpy',
    target: 0.8,
  },
  {
    ...read,
    figure: 'cma, scattered blocks of 16 KiB',
    transport: 'cma',
    blockBytes: 16 * KIB,
    batchBlocks: 4096,
    poolBatches: 4,
    roundBatches: 4,
    yardstick: 'process_vm_readv',
    target: 0.95,
  },
  {
    ...tcp,
    figure: 'tcp, one stream, runs of 16 KiB',
    blockBytes: 16 * KIB,
    batchBlocks: 1024,
    poolBatches: 8,
    roundBatches: 32,
    yardstick: 'writev loop',
    target: 0.9,
  },
  {
    ...tcp,
    figure: 'tcp, four streams, 1 MiB',
    blockBytes: MIB,
    batchBlocks: 16,
    poolBatches: 8,
    roundBatches: 64,
    yardstick: 'iperf3 -P4',
    target: 0.9,
  },
  integrity('tcp', 'unknown', 0.9),
  ucx(4 * KIB),
  ucx(16 * KIB),
  ucx(64 * KIB),
  {
    ...ucx(64 * KIB),
    figure: 'ucx, 64 KiB against ucx_perftest',
    yardstick: 'ucx_perftest',
  },
  {
    ...read,
    figure: 'memory, blocks of 16 KiB (the transport of tests)',
    transport: 'memory',
    blockBytes: 16 * KIB,
    batchBlocks: 256,
    poolBatches: 16,
    roundBatches: 8,
    yardstick: 'memcpy',
  },
];

/** @param {number} blockBytes @param {number} batchBlocks @param {number} poolBatches @param {number} roundBatches */
const nixl = (blockBytes, batchBlocks, poolBatches, roundBatches) =>
  ['shm', 'ucx'].map(transport => ({
    ...read,
    figure: `${transport} against NIXL, ${batchBlocks.toLocaleString('en-US')} x ${blockBytes / KIB} KiB`,
    transport,
    blockBytes,
    batchBlocks,
    poolBatches,
    roundBatches,
    yardstick: 'NIXL',
  }));

/** Shapes that NIXL and its UCX backend are compared in. @type {Case[]} */
export const NIXL_CASES = [
  ...nixl(16 * KIB, 256, 64, 16),
  ...nixl(16 * KIB, 16_384, 2, 2),
  ...nixl(4 * KIB, 40_960, 3, 2),
  ...nixl(MIB, 64, 4, 4),
];

/** A case made small enough for a run of seconds: large batches and pools are an eighth. @param {Case} of @returns {Case} */
export function quickCase(of) {
  const shrink = of.batchBlocks * of.blockBytes >= 64 * MIB ? 8 : 1;
  return {
    ...of,
    batchBlocks: of.batchBlocks / shrink,
    poolBatches: Math.max(2, Math.min(of.poolBatches, (64 * MIB) / (of.batchBlocks * of.blockBytes))),
    roundBatches: Math.max(2, Math.floor(of.roundBatches / 8)),
  };
}

/** Lists of the two lengths whose posting is timed, in blocks. */
export const POST_BLOCKS = [1, 1024];
/** The most that posting may take, in microseconds. @param {number} blocks */
export const postUsMost = blocks => 1 + 0.01 * blocks;
/** The most that a completion may take to the event loop, and to a thread that spins, in microseconds at the median. */
export const COMPLETION_US_MOST = 15;
export const SPIN_US_MOST = 0.5;
