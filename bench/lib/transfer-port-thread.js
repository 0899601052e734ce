/**
 * The thread of bench/lib/transfer-port.js: opens the port that it is given, measures what posting costs and how long after the
 * progress thread's stamp a completion is seen by spinning, blocking and awaiting, and sends back one row.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { openTransferPort } from '#millrace/transfer/index.js';
import { median, percentile } from './report.js';

const { description, peer, pool, remote, blocks, rounds, transfers } = workerData;
const POSTS = 64;
const WAIT_MS = 10_000;
const port = openTransferPort(description);
const nowNs = () => Number(process.hrtime.bigint());
const lists = Uint32Array.from({ length: blocks }, (_, i) => (i * 7919) % blocks);
const planOf = count =>
  port.plan({
    peer,
    direction: 'write',
    local: { pool, blocks: lists.subarray(0, count) },
    remote: { pool: remote, blocks: lists.subarray(0, count) },
  });

function checked(completion) {
  if (completion === null) throw new Error('no completion in time');
  if (completion.error !== null) throw completion.error;
  return completion;
}

function spin() {
  for (;;) {
    const completion = port.poll();
    if (completion !== null) return checked(completion);
  }
}

/** Microseconds of JavaScript for one submission, in batches that fit the port. */
function postUs(plan) {
  const times = [];
  for (let round = 0; round < rounds * 4; round++) {
    const startNs = nowNs();
    for (let i = 0; i < POSTS; i++) if (port.submit(plan) === 0) throw new Error('the port is full');
    if (round >= rounds * 2) times.push((nowNs() - startNs) / POSTS / 1000);
    for (let i = 0; i < POSTS; i++) spin();
  }
  return median(times);
}

/** Microseconds to make a plan of all blocks and submit it, as who has new blocks each time does. */
function planUs() {
  const times = [];
  for (let round = 0; round < rounds * 20; round++) {
    const startNs = nowNs();
    port.submit(planOf(blocks));
    times.push((nowNs() - startNs) / 1000);
    spin();
  }
  return median(times);
}

/** Percentiles of the microseconds from the engine's completion to its receiver; the first tenth warms up. */
async function latencyUs(receive) {
  const times = [];
  for (let i = 0; i < transfers * 1.1; i++) {
    const { doneNs } = await receive();
    times.push((nowNs() - doneNs) / 1000);
  }
  const warm = times.slice(transfers / 10);
  return { p50: percentile(warm, 50), p99: percentile(warm, 99), p999: percentile(warm, 99.9) };
}

/** The same for a receiver that answers at once: an await between would be measured too. */
function latencyUsNow(receive) {
  const times = new Float64Array(Math.floor(transfers * 1.1));
  for (let i = 0; i < times.length; i++) {
    const { doneNs } = receive();
    times[i] = (nowNs() - doneNs) / 1000;
  }
  const warm = times.subarray(transfers / 10);
  return { p50: percentile(warm, 50), p99: percentile(warm, 99), p999: percentile(warm, 99.9) };
}

const single = planOf(1);
const one = postUs(single);
const all = postUs(planOf(blocks));
const row = {
  postUs: one,
  perBlockNs: blocks > 1 ? ((all - one) * 1000) / (blocks - 1) : 0,
  planAndPostUs: planUs(),
  spinUs: latencyUsNow(() => {
    port.submit(single);
    return spin();
  }),
  waitUs: latencyUsNow(() => {
    port.submit(single);
    return checked(port.wait(WAIT_MS));
  }),
  completionUs: await latencyUs(() => port.post(single)),
};
await port.close();
parentPort.postMessage(row);
