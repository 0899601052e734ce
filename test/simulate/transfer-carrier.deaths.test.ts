// Promise: an engine that dies or stands still in the middle of a transfer harms only what it must: requests end, blocks come
// back on the other side, and nothing is leased, pinned or in flight after it. That it was in the middle is seen each time.
import { once } from 'node:events';
import t, { type Test } from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import type { MockEngine } from '#millrace/simulate/mock-engine.js';
import type { Lease } from '#millrace/transfer/index.js';
import { disaggOf, idsOf, leakOf, needsOf, prefill, startTiny, until } from './disagg-probe.js';
import { type EngineProcess, kill, startProcess, stop } from './engine-process.js';
import { type Json, post } from './http-probe.js';

const seed = Number(process.env.SEED ?? 20_261_127);
t.comment(`SEED=${seed}`);
const random = seededRandom(seed);
const promptOf = (length: number): number[] => Array.from({ length }, () => randomInteger(random, 50_000));
const completions = '/v1/completions';
const WAYS = ['shm', 'tcp'] as const;

const startOther = (t: Test, way: string, ...flags: string[]): Promise<EngineProcess> =>
  startProcess(t, '--kv-transfer', 'millrace', '--kv-transport', way, ...flags);

/**
 * Stops `other` when this engine is about to read from it: the grant is there, the bytes are not. Shared memory is read
 * without the holder's help once its agent has confirmed the lease, so there it is stopped before that.
 */
function stopBeforeReads({ memory }: MockEngine, other: EngineProcess, way: string): void {
  const { agent } = memory!;
  const connect = agent.connect.bind(agent);
  agent.connect = metadata => {
    const peer = connect(metadata);
    const [plan, holdLease] = [peer.plan.bind(peer), peer.holdLease.bind(peer)];
    peer.plan = options => {
      if (way === 'tcp') stop(other.child);
      return plan(options);
    };
    peer.holdLease = lease => {
      if (way === 'shm') stop(other.child);
      holdLease(lease);
    };
    return peer;
  };
}

for (const way of WAYS)
  t.test(`the holder is killed with a transfer in flight, ${way}`, needsOf(way), async t => {
    const [holder, d] = await Promise.all([startOther(t, way), startTiny(t, { disagg: disaggOf(way) })]);
    const alone = await startTiny(t);
    stopBeforeReads(d, holder, way);
    const prompt = promptOf(160);
    const params = await prefill(holder.url, prompt);
    const answer = post(d.url, completions, { prompt, kv_transfer_params: params });
    await until(() => d.memory!.agent.inFlight === 1);
    for (let turn = 0; turn < 200; turn++) await new Promise(resolve => setImmediate(resolve));
    t.match(d.memory!.stats(), { inFlight: 1, agent: { transfersActive: 1 } }, 'in the middle');
    t.equal(d.connector!.pulls.pulling, 1);
    const killedMs = performance.now();
    await kill(holder.child);
    const response = await answer;
    t.comment(`told after ${(performance.now() - killedMs).toFixed(0)} ms`);
    t.equal(response.status, 500);
    t.match(((await response.json()) as Json).error.message, /ended as PEER_LOST/);
    t.same([d.connector!.pulls.failed, d.memory!.agent.inFlight, leakOf(d)], [1, 0, null]);
    t.same(await idsOf(d.url, prompt, 8), await idsOf(alone.url, prompt, 8), 'nothing of it is cached');
  });

for (const way of WAYS)
  t.test(`the holder is killed with half of the blocks handed over, ${way}`, needsOf(way), async t => {
    const [holder, d] = await Promise.all([
      startOther(t, way, '--faults', 'handoverStall=1'),
      startTiny(t, { disagg: { ...disaggOf(way), loadFailure: 'recompute' } }),
    ]);
    const alone = await startTiny(t);
    const prompt = promptOf(160);
    const params = await prefill(holder.url, prompt);
    const answer = idsOf(d.url, prompt, 8, params);
    const written = (): number =>
      Array.from({ length: d.core.pool.capacity }, (_, block) => d.pages!.bytesOf(block)).filter(bytes =>
        bytes.some(byte => byte !== 0),
      ).length;
    await until(() => d.memory!.agent.inFlight === 0 && written() === 5);
    t.equal(d.connector!.pulls.pulling, 1, 'half of ten blocks has come');
    await kill(holder.child);
    t.same(await answer, await idsOf(alone.url, prompt, 8), 'computed here');
    t.same([d.connector!.pulls.failed, leakOf(d)], [1, null]);
  });

/** Stops `other` as soon as it has been granted a read here. */
function stopAtGrant({ memory }: MockEngine, other: EngineProcess): Promise<Lease> {
  const give = memory!.lease.bind(memory);
  return new Promise(resolve => {
    memory!.lease = (...given) => {
      const lease = give(...given);
      stop(other.child);
      resolve(lease);
      return lease;
    };
  });
}

/** What an idle engine process still has. */
async function leftOf({ side }: EngineProcess): Promise<number> {
  const { blocks, leases, inFlight } = (await (await fetch(`${side}/transfer`)).json()) as Json;
  return blocks.pinned + blocks.quarantine + leases + inFlight;
}

for (const way of WAYS)
  for (const fate of ['killed', 'stopped'] as const)
    t.test(`the reader is ${fate} while it reads, ${way}`, needsOf(way), async t => {
      const [p, reader, alone] = await Promise.all([
        startTiny(t, { disagg: { ...disaggOf(way), leaseMs: fate === 'killed' ? 300 : 1000 } }),
        startOther(t, way, '--kv-load-failure', 'recompute'),
        startTiny(t),
      ]);
      const prompt = promptOf(100);
      const granted = stopAtGrant(p, reader);
      const ended = once(p.memory!.agent, 'leaseExpired') as Promise<[Lease, string]>;
      const params = await prefill(p.url, prompt);
      const body = { prompt, max_tokens: 8, return_token_ids: true, kv_transfer_params: params };
      const answer = post(reader.url, completions, body).catch(() => null);
      const lease = await granted;
      t.match(p.memory!.stats(), { leases: 1, blocks: { pinned: 7 } }, 'in the middle');
      if (fate === 'killed') await kill(reader.child);
      const [end, code] = await ended;
      t.equal(end, lease);
      t.match(code, fate === 'killed' ? 'PEER_LOST' : /DEADLINE|PEER_LOST/);
      await until(() => p.connector!.desk.open === 0);
      t.same([p.connector!.desk.counters.expired, leakOf(p)], [1, null], 'all blocks are back');
      if (fate === 'killed') return;
      reader.child.kill('SIGCONT');
      const json = (await (await answer)!.json()) as Json;
      t.same(
        json.choices[0].token_ids,
        await idsOf(alone.url, prompt, 8),
        'too late to read, computed there',
      );
      t.equal(await leftOf(reader), 0);
      t.same([p.memory!.stats().leases, leakOf(p)], [0, null]);
    });
