/**
 * What it costs to move KV blocks through the transfer engine: throughput beside a native yardstick of the same list in the
 * same run, turn by turn; the JavaScript cost of posting, processor time, and the way of a completion to the event loop and
 * to a thread that spins. Bytes go between two processes, as between engines.
 *
 * Yardsticks are native programs (native/bench/yardsticks, iperf3, ucx_perftest), never loops in JavaScript. An immediate reader is
 * native too, as whoever reads KV at the speed of memory is: those rows drive the engine through its C library.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { probeTransports } from '#millrace/transfer/index.js';
import { commit, machine, median, parseFlags, printResult, progress } from './lib/report.js';
import {
  CASES,
  COMPLETION_US_MOST,
  NIXL_CASES,
  POST_BLOCKS,
  postUsMost,
  quickCase,
  SPIN_US_MOST,
} from './lib/transfer-cases.js';
import {
  buildYardsticks,
  iperf,
  isInstalled,
  Nixl,
  openYardsticks,
  ucxPerftest,
} from './lib/transfer-native.js';
import { latencies, loopDelayMs, nowNs, Pair } from './lib/transfer-pair.js';

const TRANSPORTS = [...new Set(CASES.map(({ transport }) => transport))];
const HUGE_PAGES = '/proc/sys/vm/nr_hugepages';
const flags = parseFlags({
  usage: 'node bench/transfer.js [flags]',
  summary:
    'Throughput, posting cost and latency of block transfers, beside native yardsticks of the same run.',
  flags: {
    json: { type: 'boolean', help: 'print one JSON object' },
    transport: { type: 'list', default: TRANSPORTS, choices: TRANSPORTS, help: 'which to measure' },
    memory: { type: 'string', default: 'host', choices: ['host', 'device'], help: 'where the blocks lie' },
    rounds: {
      type: 'number',
      default: 9,
      min: 1,
      max: 100,
      integer: true,
      help: 'measured rounds of each side; the median counts',
    },
    'huge-pages': {
      type: 'number',
      default: 0,
      min: 0,
      max: 65_536,
      integer: true,
      help: 'pages of 2 MiB to reserve for the run and give back (needs root)',
    },
    nixl: {
      type: 'string',
      help: 'a Python that has the nixl package: compare with it, and with nothing else',
    },
    quick: { type: 'boolean', help: 'small pools and three rounds, for CI' },
  },
  examples: ['node bench/transfer.js', 'node bench/transfer.js --json --transport shm,cma --huge-pages 3000'],
});
const LATENCY_TRANSFERS = flags.quick ? 200 : 2000;
const SPIN_TRANSFERS = flags.quick ? 2000 : 20_000;
const POSTS = 64;
const POST_ROUNDS = 15;
const rounds = flags.quick ? 3 : flags.rounds;

/** @typedef {import('./lib/transfer-cases.js').Case} Case */

/** The lists of some batches, as the native program names them. @param {Case} of @param {number} first @param {number} count */
const lists = (of, first, count) => {
  const blocks = of.batchBlocks * of.poolBatches;
  return [of.blockBytes, blocks, of.batchBlocks, count, (first * of.batchBlocks) % blocks];
};

/**
 * What a case is compared with: `open` once, then the seconds of so many batches. `needs` is a program that must be installed.
 * @type {Record<string, { needs?: string, open?(of: Case, pair: Pair): Promise<void>,
 *   seconds(of: Case, first: number, count: number, pair: Pair): Promise<number> }>}
 */
const YARDSTICKS = {
  memcpy: {
    async open(of, pair) {
      const bytes = of.blockBytes * of.batchBlocks * of.poolBatches;
      const paths = of.transport === 'cma' ? null : pair.memories();
      for (const slot of [0, 1])
        await (paths === null
          ? native.ask('large', slot, bytes)
          : native.ask('map', slot, bytes, paths[slot]));
    },
    seconds: async (of, first, count) => (await native.ask('copy', 0, 1, ...lists(of, first, count)))[0],
  },
  process_vm_readv: {
    async open(of) {
      const bytes = of.blockBytes * of.batchBlocks * of.poolBatches;
      await native.ask('neighbour', bytes);
      await native.ask('large', 1, bytes);
    },
    seconds: async (of, first, count) => (await native.ask('raw', 1, ...lists(of, first, count)))[0],
  },
  'writev loop': {
    seconds: async (of, _, count) =>
      (await native.ask('tcp', of.blockBytes, 1, of.blockBytes * of.batchBlocks * count))[0],
  },
  'iperf3 -P4': {
    needs: 'iperf3',
    seconds: async (of, _, count) => (of.blockBytes * of.batchBlocks * count) / (await iperf(4)),
  },
  ucx_perftest: {
    needs: 'ucx_perftest',
    seconds: async (of, _, count) =>
      (of.blockBytes * of.batchBlocks * count) / (await ucxPerftest(of.blockBytes)),
  },
  NIXL: {
    open: of => nixl.open(of.blockBytes, of.batchBlocks * of.poolBatches, of.batchBlocks, of.op),
    async seconds(_, first, count) {
      const [seconds, postUs] = await nixl.move(first, count);
      nixlPostUs.push(postUs);
      return seconds;
    },
  },
  contiguous: {
    async seconds(of, _, count, pair) {
      const plan = pair.contiguous(of.batchBlocks);
      const startNs = nowNs();
      for (let i = 0; i < count; i++) await plan.post({ reader: of.reader });
      return (nowNs() - startNs) / 1e9;
    },
  },
  'integrity off': {
    seconds: async (of, first, count, pair) => (await pair.move(first, count, { reader: of.reader })).seconds,
  },
};

/** Rounds of both sides in turns; ours first in every other one. Each side meets the caches as its own batches left them. */
async function takeTurns(of, ours, theirs) {
  const [mine, yours] = [[], []];
  const warm = Math.max(1, of.roundBatches >> 2);
  for (let round = 0; round < rounds; round++) {
    const sides = [
      async () => {
        await ours(round * of.roundBatches, warm);
        mine.push(await ours(round * of.roundBatches + warm, of.roundBatches));
      },
      async () => {
        await theirs(round * of.roundBatches, warm);
        yours.push(await theirs(round * of.roundBatches + warm, of.roundBatches));
      },
    ];
    if (round % 2 === 1) sides.reverse();
    for (const side of sides) await side();
  }
  return [median(mine), median(yours)];
}

function rowOf(of, seconds, theirSeconds, rest) {
  const gb = (of.blockBytes * of.batchBlocks * of.roundBatches) / 1e9;
  const ratio = theirSeconds / seconds;
  return {
    figure: of.figure,
    transport: of.transport,
    op: of.op,
    memory: of.transport === 'cma' ? 'registered' : 'pool',
    integrity: of.integrity ?? 'off',
    blockBytes: of.blockBytes,
    blocks: of.batchBlocks,
    reader: of.reader,
    gbPerSecond: gb / seconds,
    yardstick: of.yardstick,
    yardstickGbPerSecond: gb / theirSeconds,
    ratio,
    target: of.target,
    isMet: of.target === null ? null : ratio >= of.target,
    ...rest,
  };
}

async function measureCase(of) {
  const blocks = of.batchBlocks * of.poolBatches;
  const pair = await Pair.open({ ...of, blocks }, of.op);
  try {
    const yardstick = YARDSTICKS[of.yardstick];
    await yardstick.open?.(of, pair);
    const options = { reader: of.reader, integrity: of.integrity ?? 'off' };
    const [posts, delays] = [[], []];
    let cpuSeconds = 0;
    let moved = 0;
    const ours = async (first, count) => {
      const before = await pair.cpuSeconds();
      let result;
      delays.push(await loopDelayMs(async () => (result = await pair.move(first, count, options))));
      cpuSeconds += (await pair.cpuSeconds()) - before;
      moved += (of.blockBytes * of.batchBlocks * count) / 1e9;
      posts.push(result.postUs);
      return result.seconds;
    };
    const theirs = (first, count) => yardstick.seconds(of, first, count, pair);
    const [seconds, theirSeconds] = await takeTurns(of, ours, theirs);
    const waits = await latencies(pair, LATENCY_TRANSFERS);
    const postUs = median(posts);
    return rowOf(of, seconds, theirSeconds, {
      pageBytes: pair.pageBytes,
      postUs,
      perBlockNs: (postUs * 1000) / of.batchBlocks,
      cpuSecondsPerGb: cpuSeconds / moved,
      ...waits,
      eventLoopDelayMsP99: median(delays),
      ...(of.yardstick === 'NIXL' && { yardstickPostUs: median(nixlPostUs.splice(0)) }),
    });
  } finally {
    await pair.close();
  }
}

/** With an immediate reader: both sides in the native program, a thread that copies and one that reads. */
async function measureReader(of) {
  await native.ask('engine', of.transport, of.blockBytes, of.batchBlocks * of.poolBatches);
  const ours = async (first, count) => (await native.ask('engine-read', ...lists(of, first, count)))[0];
  const theirs = async (first, count) => (await native.ask('memcpy-read', ...lists(of, first, count)))[0];
  const [seconds, theirSeconds] = await takeTurns(of, ours, theirs);
  return rowOf(of, seconds, theirSeconds, {});
}

/** The figures that are times: posting, and completions to the event loop and to a thread that spins. */
async function measureTimes() {
  const figures = [];
  const add = (figure, value, most) =>
    figures.push({ figure, value, unit: 'us', target: most, isMet: value <= most });
  for (const blocks of POST_BLOCKS) {
    const pair = await Pair.open(
      { transport: 'shm', blockBytes: 4096, blocks: 4096, batchBlocks: blocks },
      'read',
    );
    const times = [];
    const plan = blocks === 1 ? pair.one : pair.contiguous(blocks);
    for (let round = 0; round < POST_ROUNDS; round++) {
      const posts = [];
      const startNs = nowNs();
      for (let i = 0; i < POSTS; i++) posts.push(plan.post());
      times.push((nowNs() - startNs) / POSTS / 1000);
      await Promise.all(posts);
    }
    add(
      `JS cost of posting ${blocks === 1 ? 'one block' : `${blocks} blocks`}`,
      median(times),
      postUsMost(blocks),
    );
    if (blocks === 1) {
      const { completionUs } = await latencies(pair, LATENCY_TRANSFERS);
      add('completion to the event loop, p50', completionUs.p50, COMPLETION_US_MOST);
    }
    await pair.close();
  }
  await native.ask('engine', 'shm', 4096, 4096);
  const [p50] = await native.ask('engine-spin', SPIN_TRANSFERS);
  add('completion to a spinning thread, p50', p50 / 1000, SPIN_US_MOST);
  return figures;
}

/** Reserves large pages, which are given back at the end of the process, however it ends. */
function reserveHugePages() {
  if (flags.hugePages === 0) return;
  const before = readFileSync(HUGE_PAGES, 'utf8');
  writeFileSync(HUGE_PAGES, String(Number(before) + flags.hugePages));
  process.once('exit', () => writeFileSync(HUGE_PAGES, before));
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1));
}

async function skipReason(of) {
  const info = available.find(({ name }) => name === of.transport);
  if (!info?.available) return info?.reason ?? 'not in this build';
  const { needs } = YARDSTICKS[of.yardstick] ?? {};
  return needs === undefined || (await isInstalled(needs)) ? null : `${needs} is not installed`;
}

if (flags.memory === 'device') {
  process.stderr.write(
    '--memory device needs a GPU and is measured without Node: python -m millrace_kv.gpu_check, of transfer/python\n',
  );
  process.exit(2);
}
const available = probeTransports();
const cases = (flags.nixl === undefined ? CASES : NIXL_CASES)
  .filter(({ transport }) => flags.transport.includes(transport))
  .map(of => (flags.quick ? quickCase(of) : of));
await buildYardsticks();
reserveHugePages();
const native = openYardsticks();
const nixl = flags.nixl === undefined ? null : new Nixl(flags.nixl);
const nixlVersion = await nixl?.about();
const nixlPostUs = [];
const bar = progress('transfer', cases.length + 1);
const [rows, skipped, times] = [[], [], []];
try {
  for (const of of cases) {
    const reason = await skipReason(of);
    if (reason === null)
      rows.push(await (of.yardstick === 'memcpy and read' ? measureReader(of) : measureCase(of)));
    else skipped.push({ figure: of.figure, reason });
    bar.step(of.figure);
  }
  if (nixl === null && flags.transport.includes('shm')) times.push(...(await measureTimes()));
  bar.step('times');
} finally {
  await native.close();
  await nixl?.close();
}
bar.done();
const figures = [
  ...rows.map(({ figure, ratio, target, isMet }) => ({ figure, value: ratio, unit: 'ratio', target, isMet })),
  ...times,
];
printResult(
  {
    bench: 'transfer',
    machine: machine(),
    commit: commit(),
    settings: { ...flags, nixlVersion },
    skipped,
    errors: 0,
    figures,
    rows,
  },
  {
    json: flags.json,
    table: figures.map(({ isMet, ...row }) => ({ ...row, met: isMet === null ? '-' : isMet ? 'yes' : 'no' })),
  },
);
