// Promise: benches read their flags strictly, compute percentiles by the nearest rank, and with --json print exactly one object on stdout.
import { spawnSync } from 'node:child_process';
import t from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const moduleUrl = new URL('../../../bench/lib/report.js', import.meta.url).href;
const report = await import(moduleUrl);

/** Runs a line of code against the module in a process of its own. */
function run(code: string, args: string[] = []) {
  const script = `import * as report from ${JSON.stringify(moduleUrl)}; ${code}`;
  return spawnSync(process.execPath, ['--input-type=module', '-e', script, 'x.js', ...args], {
    encoding: 'utf8',
    timeout: 30_000,
  });
}

const SPEC = {
  usage: 'node bench/x.js [flags]',
  summary: 'Measures x.',
  flags: {
    json: { type: 'boolean', help: 'one JSON object' },
    'period-ms': { type: 'number', integer: true, min: 1, max: 1000, default: 20, help: 'period' },
    rows: { type: 'list', choices: ['paced', 'burst'], default: ['paced'], help: 'rows' },
    streams: { type: 'list', numeric: true, integer: true, min: 1, help: 'counts' },
  },
  examples: ['node bench/x.js --json'],
};

t.test('percentile and median agree with their definitions on random values', async t => {
  const seed = Number(process.env.SEED ?? Date.now() % 1e9);
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  for (let turn = 0; turn < 300; turn += 1) {
    const values = Array.from(
      { length: 1 + randomInteger(random, 40) },
      () => randomInteger(random, 20) - 10,
    );
    const p = randomInteger(random, 101);
    const enough = (v: number) => values.filter(x => x <= v).length * 100 >= p * values.length;
    const expected = Math.min(...values.filter(enough));
    if (report.percentile(values, p) !== expected)
      t.equal(report.percentile(values, p), expected, `${p} of ${values}`);
    const middle = report.median(values);
    const below = values.filter(x => x < middle).length;
    const above = values.filter(x => x > middle).length;
    if (Math.max(below, above) * 2 > values.length) t.fail(`median ${middle} of ${values}`);
  }
  t.equal(report.median([4, 1, 3, 2]), 2.5);
  t.ok(Number.isNaN(report.percentile([], 50)) && Number.isNaN(report.median([])));
  t.throws(() => report.percentile([1], 101), /0 to 100/);
});

t.test('flags are read with their types and defaults', async t => {
  t.strictSame(report.readFlags(SPEC, []), {
    help: false,
    json: false,
    periodMs: 20,
    rows: ['paced'],
    streams: undefined,
  });
  const given = ['--json', '--period-ms=5', '--rows', 'burst,paced', '--streams', '400,1000'];
  t.strictSame(report.readFlags(SPEC, given), {
    help: false,
    json: true,
    periodMs: 5,
    rows: ['burst', 'paced'],
    streams: [400, 1000],
  });
});

t.test('wrong flags name the flag, the range and the nearest name', async t => {
  const cases: Array<[string[], RegExp]> = [
    [['--perod-ms', '5'], /unknown flag --perod-ms; did you mean --period-ms\?/],
    [['--constructor'], /unknown flag/],
    [['--period-ms', '0'], /--period-ms must be a whole number from 1 to 1000, got "0"/],
    [['--period-ms', '1.5'], /whole number/],
    [['--period-ms', 'NaN'], /whole number/],
    [['--period-ms'], /--period-ms needs a value/],
    [['--rows', 'paced,brust'], /--rows must be one of paced, burst; did you mean burst\?/],
    [['--streams', '400,'], /--streams must be a whole number from 1/],
    [['--json=yes'], /--json takes no value/],
    [['extra'], /unexpected argument "extra"/],
  ];
  for (const [argv, message] of cases) t.throws(() => report.readFlags(SPEC, argv), message, argv.join(' '));
});

t.test('--help goes to stdout with exit 0, a wrong flag to stderr with exit 2', async t => {
  const code = `report.parseFlags(${JSON.stringify(SPEC)})`;
  const help = run(code, ['--help']);
  t.equal(help.status, 0);
  t.match(help.stdout, /--period-ms <number> {2}period \(default 20\)(?:.|\n)*node bench\/x\.js --json/);
  const wrong = run(code, ['--jsn']);
  t.equal(wrong.status, 2);
  t.equal(wrong.stdout, '');
  t.match(wrong.stderr, /did you mean --json\?/);
});

t.test('with json stdout is exactly the object, without it a table; progress stays on stderr', async t => {
  const result = { bench: 'x', results: { p50: 1.5, list: [1, 2] }, errors: 0 };
  const code = (json: boolean) =>
    `const bar = report.progress('x', 2); bar.step('one'); bar.step(); bar.done();
     report.printResult(${JSON.stringify(result)}, { json: ${json}, table: [{ row: 'a', p50: 1.5 }, { row: 'bb', big: 123456.7 }] });`;
  const json = run(code(true));
  t.strictSame(JSON.parse(json.stdout), result);
  t.match(json.stderr, /^x: 1\/2 .*one\nx: 2\/2/);
  t.equal(run(code(false)).stdout, 'row    p50      big\na    1.500        -\nbb       -  123,457\n');
});

t.test('machine and commit hold the facts of this checkout', async t => {
  t.match(report.machine(), { cores: Number, memoryBytes: Number, node: process.version, kernel: /\S/ });
  t.match(report.commit(), /^(unknown|[0-9a-f]{7,}(-dirty)?)$/);
});
