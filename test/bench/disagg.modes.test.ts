// Promise: the bench of prefill and decode fleets prints one object of the stated shape, finds the highest rate within a target,
// and exits with 1 exactly when the conditional mode loses to a pure one.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import t from 'tap';

const bench = new URL('../../../bench/', import.meta.url);
const { spreadArrivals } = await import(new URL('lib/disagg-arrivals.js', bench).href);
const { fleetsOf, nameOf } = await import(new URL('lib/disagg-fleets.js', bench).href);
const { highestRate } = await import(new URL('lib/disagg-search.js', bench).href);

t.setTimeout(120_000);
const script = fileURLToPath(new URL('disagg.js', bench));
const run = (...flags: string[]) =>
  spawnSync(process.execPath, [script, ...flags], { encoding: 'utf8', timeout: 100_000 });

const DISTRIBUTION = { mean: Number, p50: Number, p90: Number, p99: Number };
const MODE = {
  requests: 500,
  errors: 0,
  ttftMs: DISTRIBUTION,
  itlMs: DISTRIBUTION,
  e2eMs: DISTRIBUTION,
  outputTokensPerSecond: Number,
  hitRate: Number,
  handedOver: Number,
  handedOverShare: Number,
  atTarget: { requestsPerSecondPerWorker: Number, outputTokensPerSecondPerWorker: Number },
};
const SMALL = ['--workers', '3', '--requests', '500', '--json'];
const TINY = ['--workers', '2', '--requests', '60', '--workload', 'shared-prompt', '--json'];

t.test('one object, a report, and 0 where the conditional mode holds', async t => {
  const report = `${t.testdir()}/report.html`;
  const { status, stdout, stderr } = run(...SMALL, '--load', '0.8', '--out', report);
  t.equal(status, 0, stderr);
  const { modes, headline, settings, splits, ...facts } = JSON.parse(stdout);
  t.match(facts, { bench: 'disagg', commit: String, machine: { cores: Number } });
  t.match(settings, { target: { ttftMs: 2000, itlMs: 25, percentile: 90 }, rules: { policy: 'cost' } });
  t.match(modes, { aggregated: MODE, disaggregated: MODE, conditional: MODE });
  const { aggregated, disaggregated, conditional } = modes;
  t.same([aggregated.handedOver, disaggregated.handedOver], [0, 500]);
  t.ok(conditional.handedOver < 500);
  t.same([aggregated.handoverMs.mean, aggregated.requestsPerSecond], [null, conditional.requestsPerSecond]);
  t.match(headline, {
    throughputRatioAtSla: Number,
    bestSplit: /^conditional .P\+.D$/,
    conditionalHolds: true,
  });
  t.equal(splits.length, 5);
  t.match(stderr, /disagg: 10\/10 /);
  const html = readFileSync(report, 'utf8');
  for (const part of ['Time to first token', 'aggregated', 'conditional 1P+2D', '</html>'])
    t.ok(html.includes(part), part);
});

t.test('1 where it loses: it takes this link for a usual one', async t => {
  const { status, stdout, stderr } = run(...TINY, '--link', '0.01', '--ttft-ms', '60000');
  t.equal(status, 1, stderr);
  t.equal(JSON.parse(stdout).headline.conditionalHolds, false);
  t.match(stderr, /NOT within 3 %/);
});

t.test('a target that nothing meets, too few requests, and a trace that is not there', async t => {
  const impossible = run(...TINY, '--ttft-ms', '1');
  t.same([impossible.status, impossible.stdout], [1, '']);
  t.match(impossible.stderr, /the aggregated fleet never meets --ttft-ms 1/);
  const few = run('--workers', '2', '--requests', '5', '--json');
  t.same([few.status, few.stdout], [1, '']);
  t.match(few.stderr, /aggregated meets the target at any rate: so few requests/);
  const missing = run('--trace', 'no-such-trace.jsonl', '--json');
  t.same([missing.status, missing.stdout], [0, '']);
  t.match(missing.stderr, /skipped: there is no trace no-such-trace\.jsonl/);
});

t.test('the highest rate is found from above and from below', async t => {
  for (const limit of [0.5, 1, 7.3, 30]) {
    const found = highestRate((rate: number) => rate <= limit, 4);
    t.ok(found <= limit && found > limit / 1.01, `${found} of ${limit}`);
  }
  t.same([highestRate(() => false, 4), highestRate(() => true, 4)], [null, Number.POSITIVE_INFINITY]);
});

t.test('every split of the workers, in both modes', async t => {
  t.same(fleetsOf(3).map(nameOf), [
    'aggregated',
    'disaggregated 1P+2D',
    'disaggregated 2P+1D',
    'conditional 1P+2D',
    'conditional 2P+1D',
  ]);
});

t.test('arrivals of one moment are drawn until the next, in their order', async t => {
  const times = [0, 0, 0, 3000, 6000, 6000];
  const requests = times.map((arrivalMs, at) => ({
    arrivalMs,
    promptTokens: 1 + at,
    outputTokens: 1,
    hashIds: [0],
  }));
  const given = { name: 'ties', traceBlockTokens: 512, requests, joinsAtShare: null };
  const spread: { arrivalMs: number; promptTokens: number }[] = spreadArrivals(given, 5).requests;
  t.same(
    spread.map(({ promptTokens }) => promptTokens),
    [1, 2, 3, 4, 5, 6],
  );
  const arrivals = spread.map(({ arrivalMs }) => arrivalMs);
  t.ok(arrivals.every((ms, at) => ms >= times[at]! && ms <= (times[at]! < 6000 ? times[at]! + 3000 : 6000)));
  t.ok(arrivals.every((ms, at) => at === 0 || ms >= arrivals[at - 1]!));
  t.ok(arrivals[0]! > 0 && arrivals[2]! - arrivals[0]! > 100, 'apart');
  t.same(spreadArrivals(given, 5).requests, spread);
});
