// Promise: under random faults of workers, clients and planning threads nothing leaks, nothing hangs, every request is
// counted once under its name, and every answer that ends well is exactly the answer of an undisturbed engine.

import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus, loadavg } from 'node:os';
import t, { type Test } from 'tap';
import { SERVERS } from '../plane-fixture.js';
import { MANNERS } from './chaos-client.js';
import { FLOOD_MODEL, MODELS } from './chaos-fleet.js';
import {
  type ChaosResult,
  idleTimers,
  type MemorySample,
  runChaos,
  slopeMibPerMinute,
  surplusDescriptors,
} from './chaos-run.js';

const LONG = process.env.MILLRACE_TEST_LONG === '1';
/** Of both servers together. */
const REQUESTS = Number(process.env.CHAOS_REQUESTS ?? (LONG ? 100_000 : 10_000));
/** The memory is looked at between rounds. */
const ROUNDS = LONG ? 20 : 1;
/** Per round with deaths: 30 in the long run, 4 in the short one. */
const THREAD_DEATHS = LONG ? 6 : 4;
const RSS_SLOPE_MAX_MIB_PER_MINUTE = 1;
const RESULT_FOLDER = 'test/results';
const seed = Number(process.env.SEED ?? Date.now() % 1e6);

/** What the clients saw against what the plane counted. */
function checkAccounts(t: Test, { tally, ended, accepted }: ChaosResult): void {
  t.same(tally.wrong.slice(0, 5), [], `${tally.wrong.length} wrong answers`);
  const { sent, completed, rejected, failed, left, leftUnseen } = tally;
  t.equal(completed + rejected + failed + left, sent, 'every client came to an end');
  t.ok(accepted <= sent && accepted >= sent - leftUnseen, 'every request was taken once');
  const total = Object.values(ended).reduce((sum, count) => sum + count, 0);
  t.equal(total, accepted, 'every request was ended once');
  for (const [cause, count] of Object.entries({ completed, ...tally.errors })) {
    const counted = ended[cause] ?? 0;
    // Who leaves does not see how the request ended: it may have been any of these.
    t.ok(counted >= count && counted <= count + left, `${cause}: ${counted} for ${count}`);
  }
  t.ok(completed > sent / 2, 'most requests end well');
  t.equal(ended.internal ?? 0, tally.errors.internal ?? 0, 'nothing failed of itself');
  t.ok(ended.client_gone! > 0 && ended.slow_client! > 0, 'clients left, and were cut');
}

function checkChaos(t: Test, { tally, faults, threadDeaths, after }: ChaosResult): void {
  // Nothing is handed over in this fleet.
  const kinds = Object.entries(faults).filter(([kind]) => !kind.startsWith('handover'));
  for (const [kind, count] of kinds) t.ok(count > 0, `engines: ${count} ${kind}`);
  for (const manner of Object.keys(MANNERS))
    t.ok(tally.manners[manner]! > 0, `clients: ${tally.manners[manner]} ${manner}`);
  for (const model of [...MODELS, FLOOD_MODEL])
    t.ok(tally.completedByModel[model]! > 0, `answers of ${model}`);
  t.equal(threadDeaths, Math.ceil(ROUNDS / 4) * THREAD_DEATHS, 'threads were killed');
  t.equal(after.restarts, threadDeaths, 'and replaced');
}

function checkRest(t: Test, { before, after, closed }: ChaosResult): void {
  t.same(after.leftovers, [], 'nothing is left behind');
  t.same(after.errors, [], 'no error was logged');
  t.same(surplusDescriptors(after, before), [], 'descriptors are back, but for those of killed threads');
  t.ok(after.threads <= before.threads, `threads: ${after.threads}, before ${before.threads}`);
  t.ok(after.timers <= idleTimers(after), `timers: ${after.timers}`);
  t.same(closed, { timers: 0, exitCode: 0 }, 'once closed, the plane keeps neither a timer nor its process');
}

const rounded = (value: number): number => Math.round(value * 100) / 100;

/** The slopes are those of the second half of the samples. */
function memoryReport(samples: readonly MemorySample[]): object {
  const rssOf = ({ rss }: MemorySample): number => rounded(rss / 2 ** 20);
  return {
    rssSlopeMiBPerMinute: rounded(slopeMibPerMinute(samples, 'rss')),
    heapSlopeMiBPerMinute: rounded(slopeMibPerMinute(samples, 'heapUsed')),
    rssMiB: Object.fromEntries(samples.map(sample => [`${Math.round(sample.seconds)} s`, rssOf(sample)])),
  };
}

function report(server: string, result: ChaosResult): object {
  const { tally, ended, accepted, faults, threadDeaths, samples, seconds, before, after } = result;
  const { sent, completed, rejected, failed, left, leftUnseen, errors, manners, completedByModel } = tally;
  return {
    server,
    ...{ sent, completed, rejected, failed, left, leftUnseen, accepted, ended, errors },
    ...{ manners, completedByModel, faults, threadDeaths },
    ...(LONG ? memoryReport(samples) : {}),
    fds: { before: before.fds, after: after.fds },
    threads: { before: before.threads, after: after.threads },
    timers: { before: before.timers, after: after.timers },
    durationSeconds: rounded(seconds),
  };
}

const runs: object[] = [];

for (const server of SERVERS) {
  t.test(server, async t => {
    t.comment(`SEED=${seed}`);
    const requests = Math.ceil(REQUESTS / SERVERS.length / ROUNDS);
    const result = await runChaos(t, { server, seed, requests, rounds: ROUNDS, threadDeaths: THREAD_DEATHS });
    const run = report(server, result);
    t.comment(JSON.stringify(run));
    runs.push(run);
    checkAccounts(t, result);
    checkChaos(t, result);
    checkRest(t, result);
    if (!LONG) return;
    const slope = slopeMibPerMinute(result.samples, 'rss');
    t.ok(slope <= RSS_SLOPE_MAX_MIB_PER_MINUTE, `RSS grows by ${slope.toFixed(2)} MiB per minute`);
  });
}

t.teardown(() => {
  if (!LONG) return;
  const commit = execFileSync('git', ['rev-parse', 'HEAD'], { encoding: 'utf8' }).trim();
  const machine = {
    cpu: cpus()[0]!.model,
    cores: cpus().length,
    node: process.version,
    loadAverage: loadavg()[0]!,
  };
  const result = { commit, date: new Date().toISOString(), machine, seed, runs };
  mkdirSync(RESULT_FOLDER, { recursive: true });
  writeFileSync(`${RESULT_FOLDER}/chaos-long.json`, `${JSON.stringify(result, null, 2)}\n`);
});
