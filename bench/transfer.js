/**
 * What it costs to move KV blocks through the transfer engine: throughput against memcpy of the same list in the same run,
 * the JavaScript cost of posting, processor time, and the way of a completion to the event loop. `memory` joins two agents of
 * this process; every other transport goes to a child process, as between engines.
 *
 * The yardstick copies the same blocks in the same order between two buffers of this process with TypedArray.set over views
 * made beforehand; what such a call costs on one byte is taken off, so that the yardstick is memcpy and not JavaScript.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { createAgent, probeTransports } from '#millrace/transfer/index.js';
import { commit, machine, median, parseFlags, percentile, printResult, progress } from './lib/report.js';

const TRANSPORTS = ['memory', 'shm', 'cma', 'tcp'];
const flags = parseFlags({
  usage: 'node bench/transfer.js [flags]',
  summary: 'Throughput, posting cost and latency of block transfers, beside memcpy of the same blocks.',
  flags: {
    json: { type: 'boolean', help: 'print one JSON object' },
    transports: { type: 'list', default: TRANSPORTS, choices: TRANSPORTS, help: 'which to measure' },
    'block-bytes': {
      type: 'list',
      numeric: true,
      default: [4096, 16_384, 262_144],
      min: 64,
      max: 16_777_216,
      integer: true,
      help: 'sizes of a block, in bytes',
    },
    'transfer-bytes': {
      type: 'number',
      default: 8_388_608,
      min: 65_536,
      max: 268_435_456,
      integer: true,
      help: 'bytes of one transfer',
    },
    rounds: {
      type: 'number',
      default: 5,
      min: 1,
      max: 100,
      integer: true,
      help: 'measured rounds of a row; the median counts',
    },
  },
  examples: ['node bench/transfer.js', 'node bench/transfer.js --json --transports shm --block-bytes 16384'],
});
/** Transfers of one round, and how many are in flight at once. */
const ROUND_TRANSFERS = 8;
const IN_FLIGHT = 4;
const LATENCY_TRANSFERS = 2000;
const POSTS = 200;
const NS_PER_S = 1e9;

const nowNs = () => Number(process.hrtime.bigint());
const layoutOf = blockBytes => ({ kind: 'opaque', blockBytes });

/** The blocks in an order that no prefetcher guesses, the same in every run. */
function scattered(blocks) {
  const order = Uint32Array.from({ length: blocks }, (_, i) => i);
  let state = 1;
  for (let i = blocks - 1; i > 0; i--) {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    const other = state % (i + 1);
    [order[i], order[other]] = [order[other], order[i]];
  }
  return order;
}

/** Far end of a connection: an agent of this process, or of a child. */
async function openFar(transport, near, pools) {
  if (transport === 'memory') {
    const agent = createAgent({ transports: [transport] });
    const ids = pools.map(
      ({ blockBytes, blocks }) => agent.createPool({ layout: layoutOf(blockBytes), blocks }).id,
    );
    agent.connect(near.metadata());
    const noCpu = async () => 0;
    return { metadata: agent.metadata(), ids, cpuSeconds: noCpu, close: () => agent.close() };
  }
  const child = fork(fileURLToPath(new URL('./lib/transfer-far.js', import.meta.url)), [], {
    serialization: 'advanced',
  });
  child.send({ transport, pools, metadata: near.metadata(), fromCaller: transport === 'cma' });
  const [{ metadata, ids }] = await once(child, 'message');
  return {
    metadata,
    ids,
    async cpuSeconds() {
      child.send('cpu');
      return (await once(child, 'message'))[0];
    },
    async close() {
      child.send('close');
      await once(child, 'exit');
    },
  };
}

/** Seconds for one copy of the list, the median of `rounds`. */
function memcpySeconds(order, blockBytes, rounds) {
  const source = new Uint8Array(order.length * blockBytes).fill(1);
  const target = new Uint8Array(source.length).fill(2);
  const views = (bytes, length) =>
    Array.from(order, (block, i) => bytes.subarray(place(block, i), place(block, i) + length));
  const place = block => block * blockBytes;
  const time = length => {
    const [from, to] = [views(source, length), views(target, length)];
    const times = [];
    for (let round = 0; round < rounds + 2; round++) {
      const startNs = nowNs();
      for (let i = 0; i < to.length; i++) to[i].set(from[i]);
      if (round >= 2) times.push(nowNs() - startNs);
    }
    return median(times) / NS_PER_S;
  };
  return Math.max(time(blockBytes) - time(1), Number.EPSILON);
}

/** Posts `count` transfers with IN_FLIGHT at once and waits for all. */
async function move(plan, count, options) {
  let begun = 0;
  const lane = async () => {
    while (begun < count) {
      begun++;
      await plan.post(options);
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
}

/** Microseconds of JavaScript for one post. */
async function postUs(plan) {
  const times = [];
  for (let round = 0; round < 9; round++) {
    const posts = [];
    const startNs = nowNs();
    for (let i = 0; i < POSTS; i++) posts.push(plan.post());
    times.push((nowNs() - startNs) / POSTS / 1000);
    await Promise.all(posts);
  }
  return median(times);
}

/** Microseconds from post to promise, and from the engine's completion to the event loop. */
async function latencies(plan) {
  const [whole, wakeUp] = [[], []];
  for (let i = 0; i < LATENCY_TRANSFERS; i++) {
    const startNs = nowNs();
    const { doneNs } = await plan.post();
    const endNs = nowNs();
    whole.push((endNs - startNs) / 1000);
    wakeUp.push((endNs - doneNs) / 1000);
  }
  const percentiles = values => ({
    p50: percentile(values, 50),
    p99: percentile(values, 99),
    p999: percentile(values, 99.9),
  });
  return { latencyUs: percentiles(whole), completionUs: percentiles(wakeUp) };
}

async function throughput(plan, far, bytes, options) {
  await move(plan, 2, options);
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const farBefore = await far.cpuSeconds();
  const before = process.cpuUsage();
  delay.enable();
  const seconds = [];
  for (let round = 0; round < flags.rounds; round++) {
    const startNs = nowNs();
    await move(plan, ROUND_TRANSFERS, options);
    seconds.push((nowNs() - startNs) / NS_PER_S);
  }
  delay.disable();
  const used = process.cpuUsage(before);
  const cpuSeconds = (used.user + used.system) / 1e6 + (await far.cpuSeconds()) - farBefore;
  const roundGb = (ROUND_TRANSFERS * bytes) / 1e9;
  return {
    gbPerSecond: roundGb / median(seconds),
    cpuSecondsPerGb: cpuSeconds / (roundGb * flags.rounds),
    eventLoopDelayMsP99: delay.percentile(99) / 1e6,
  };
}

async function measurePool(transport, near, far, pool, remote) {
  const { blockBytes, blocks } = pool;
  const order = scattered(blocks);
  const bytes = blocks * blockBytes;
  const plan = (direction, count) => {
    const list = order.subarray(0, count);
    return far.peer.plan({
      direction,
      local: { pool: near, blocks: list },
      remote: { pool: remote, blocks: list },
    });
  };
  const rows = [];
  for (const op of ['read', 'write']) {
    const one = await postUs(plan(op, 1));
    const all = await postUs(plan(op, blocks));
    const waits = await latencies(plan(op, 1));
    for (const reader of ['soon', 'later']) {
      const moved = await throughput(plan(op, blocks), far, bytes, { reader });
      const yardstickGbPerSecond = bytes / 1e9 / memcpySeconds(order, blockBytes, flags.rounds);
      rows.push({
        transport,
        op,
        memory: transport === 'cma' ? 'registered' : 'pool',
        blockBytes,
        blocks,
        reader,
        gbPerSecond: moved.gbPerSecond,
        yardstick: 'memcpy',
        yardstickGbPerSecond,
        ratio: moved.gbPerSecond / yardstickGbPerSecond,
        postUs: one,
        perBlockNs: blocks > 1 ? ((all - one) * 1000) / (blocks - 1) : 0,
        cpuSecondsPerGb: moved.cpuSecondsPerGb,
        ...waits,
        eventLoopDelayMsP99: moved.eventLoopDelayMsP99,
      });
    }
  }
  return rows;
}

async function measureTransport(transport, bar) {
  const pools = flags.blockBytes.map(blockBytes => ({
    blockBytes,
    blocks: Math.max(1, Math.floor(flags.transferBytes / blockBytes)),
  }));
  const agent = createAgent({ transports: [transport], operationsMax: 8192 });
  const nears = pools.map(({ blockBytes, blocks }) =>
    transport === 'cma'
      ? agent.registerPool({
          buffer: new ArrayBuffer(blockBytes * blocks),
          layout: layoutOf(blockBytes),
          blocks,
        })
      : agent.createPool({ layout: layoutOf(blockBytes), blocks }),
  );
  const far = await openFar(transport, agent, pools);
  far.peer = agent.connect(far.metadata);
  const rows = [];
  for (const [i, pool] of pools.entries()) {
    rows.push(...(await measurePool(transport, nears[i], far, pool, far.ids[i])));
    bar.step(transport);
  }
  await agent.close();
  await far.close();
  return rows;
}

const available = probeTransports();
const bar = progress('transfer', flags.transports.length * flags.blockBytes.length);
const rows = [];
const skipped = [];
for (const transport of flags.transports) {
  const info = available.find(({ name }) => name === transport);
  if (info?.available) rows.push(...(await measureTransport(transport, bar)));
  else skipped.push({ transport, reason: info?.reason ?? 'not in this build' });
}
bar.done();
printResult(
  { bench: 'transfer', machine: machine(), commit: commit(), settings: flags, skipped, errors: 0, rows },
  {
    json: flags.json,
    table: rows.map(({ latencyUs, completionUs, yardstick, ...row }) => ({
      ...row,
      latencyUsP50: latencyUs.p50,
      completionUsP50: completionUs.p50,
    })),
  },
);
