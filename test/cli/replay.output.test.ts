// Promise: `millrace replay` prints a table or one JSON object, writes a report without outside files, and explains wrong use.
import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';

const run = promisify(execFile);
const MAIN = new URL('../../../dist/cli/main.js', import.meta.url).pathname;
const SMALL = ['--workload', 'fan-out', '--requests', '60', '--workers', '2', '--seed', '3'];
const replay = (...flags: string[]) => run(process.execPath, [MAIN, 'replay', ...flags], { timeout: 60_000 });

t.test('JSON: one object with policies, ratios and settings', async t => {
  const { stdout } = await replay(...SMALL, '--policies', 'ttft,least-loaded,round-robin', '--json');
  const result = JSON.parse(stdout);
  t.same(Object.keys(result.policies), ['ttft', 'least-loaded', 'round-robin']);
  t.match(result.settings, {
    workers: 2,
    load: 0.7,
    blockSize: 64,
    numGpuBlocks: 23_438,
    maxNumBatchedTokens: 8192,
  });
  t.match(result.policies.ttft, {
    requests: 60,
    errors: 0,
    ttftMs: { p50: Number, p90: Number, p99: Number },
  });
  t.ok(Object.hasOwn(result.policies, result.best));
  const means = Object.values<{ ttftMs: { mean: number } }>(result.policies).map(({ ttftMs }) => ttftMs.mean);
  t.equal(result.policies[result.best].ttftMs.mean, Math.min(...means));
  const ratio = result.policies['round-robin'].ttftMs.mean / Math.min(...means);
  t.equal(result.ratios.ttftMeanRoundRobinOverBest, ratio);
});

t.test('table and report', async t => {
  const out = join(t.testdir(), 'report.html');
  const { stdout } = await replay(...SMALL, '--policies', 'kv,random', '--out', out);
  t.match(stdout, /^fan-out: 60 requests in [\d.]+ s, prefill load 0\.\d+, decode [\d.]+ on top/m);
  t.match(stdout, /^kv +\d+ +\d+/m);
  t.match(stdout, /^best: (kv|random); mean TTFT of round-robin -/m);
  const html = await readFile(out, 'utf8');
  t.match(html, /<polyline/);
  t.notMatch(html, /<script|(src|href)=/);
});

t.test('wrong use is one line that says what is allowed', async t => {
  const cases: [string[], RegExp][] = [
    [[], /--trace FILE or --workload NAME is needed/],
    [['--workload', 'fanout'], /"fanout" is unknown; known are shared-prompt, fan-out/],
    [[...SMALL, '--policies', 'kv,best'], /--policies: "best" is unknown/],
    [[...SMALL, '--load', '0'], /--load must be a number from 0\.01 to 10; got '0'/],
    [[...SMALL, '--workers', '0'], /--workers must be an integer from 1 to 1024/],
    [['--trace', '/no/such/trace'], /cannot be read: ENOENT/],
    [
      [...SMALL, '--out', '/no/such/folder/report.html', '--policies', 'random'],
      /--out .* cannot be written/,
    ],
  ];
  await Promise.all(
    cases.map(async ([flags, message]) => {
      const error = await replay(...flags).then(
        () => null,
        cause => cause,
      );
      t.equal(error?.code, 2, flags.join(' '));
      t.match(error?.stderr, message);
    }),
  );
});
