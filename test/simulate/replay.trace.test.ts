// Promise: a trace is read as it is written, its faults are named with their line, and prompts share blocks exactly where
// they share hash ids.
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { ConfigError } from '#millrace/errors.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { replay } from '#millrace/simulate/replay/replay.js';
import { summarize } from '#millrace/simulate/replay/summary.js';
import { readTrace } from '#millrace/simulate/replay/trace-reader.js';
import { prepare } from '#millrace/simulate/replay/workload.js';

const good = { timestamp: 0, input_length: 700, output_length: 5, hash_ids: [0, 1] };
const lineOf = (more: object): string => JSON.stringify({ ...good, ...more });
let files = 0;
async function write(text: string): Promise<string> {
  const path = join(t.testdir(), `${files++}.jsonl`);
  await writeFile(path, text);
  return path;
}

t.test('reads a trace and stops at the limit', async t => {
  const path = await write(`${lineOf({})}\n\n${lineOf({ timestamp: 3 })}\r\n${lineOf({ timestamp: 9.5 })}`);
  const { requests } = await readTrace(path, 10);
  t.same(
    requests.map(({ arrivalMs }) => arrivalMs),
    [0, 3, 9.5],
  );
  t.match(requests[0], { promptTokens: 700, outputTokens: 5, hashIds: [0, 1] });
  t.equal((await readTrace(path, 2)).requests.length, 2);
});

const FAULTS: [string, string, RegExp][] = [
  ['no JSON', 'oops', /:2: not a JSON object/],
  ['an array', '[]', /:2: not a JSON object/],
  ['no timestamp', lineOf({ timestamp: undefined }), /:2: timestamp must be a number/],
  ['a negative timestamp', lineOf({ timestamp: -1 }), /:2: timestamp must be/],
  [
    'no tokens',
    lineOf({ input_length: 0, hash_ids: [] }),
    /:2: input_length must be a whole number from 1 to/,
  ],
  ['too many tokens', lineOf({ output_length: 1e9 }), /:2: output_length must be/],
  ['a fraction of an id', lineOf({ hash_ids: [0, 1.5] }), /:2: hash_ids must be an array of whole numbers/],
  ['too few ids', lineOf({ hash_ids: [0] }), /:2: hash_ids must have 2 ids for 700 tokens; it has 1/],
];
for (const [name, line, message] of FAULTS) {
  t.test(`refuses ${name}`, async t => {
    const path = await write(`${lineOf({})}\n${line}\n`);
    await t.rejects(readTrace(path, 10), ConfigError);
    await t.rejects(readTrace(path, 10), { message });
  });
}

t.test('refuses what cannot be replayed', async t => {
  const backwards = await write(`${lineOf({ timestamp: 5 })}\n${lineOf({ timestamp: 4 })}`);
  await t.rejects(readTrace(backwards, 10), { message: /:2: timestamp must not be before/ });
  await t.rejects(readTrace(await write(lineOf({})), 10), { message: /at least 2 requests/ });
  await t.rejects(readTrace(await write(`${lineOf({})}\n${lineOf({})}`), 10), {
    message: /at least 2 requests/,
  });
  await t.rejects(readTrace('/no/such/file', 10), { message: /cannot be read: ENOENT/ });
});

t.test('blocks of any size are shared exactly under equal hash ids', async t => {
  const requests = [
    { arrivalMs: 0, promptTokens: 1300, outputTokens: 1, hashIds: [7, 8, 9] },
    { arrivalMs: 1, promptTokens: 1100, outputTokens: 1, hashIds: [7, 8, 10] },
  ];
  for (const blockSize of [16, 64, 96, 512, 700]) {
    const { requests: prepared } = prepare(
      { name: 'x', traceBlockTokens: 512, requests, joinsAtShare: null },
      blockSize,
    );
    const [one, two] = prepared.map(({ prompt }) => prompt.keys);
    t.equal(one!.length, Math.floor(1300 / blockSize));
    const common = one!.filter((key, at) => key === two![at]).length;
    t.equal(common, Math.floor(1024 / blockSize), `blocks of ${blockSize}`);
    t.equal(
      new Set([...one!, ...two!]).size,
      one!.length + two!.length - common,
      'no key stands for two prefixes',
    );
    const { hashes } = prepared[0]!.blocks;
    t.ok(
      one!.every((key, at) => hashes[2 * at]! + hashes[2 * at + 1]! * 2 ** 32 === key),
      'hashes are the keys',
    );
  }
});

const TRACE = '../shared/data/traces/mooncake_conversation.jsonl';
const skip = existsSync(TRACE) ? false : `the trace ${TRACE} is not there`;
t.test('conversation trace: ttft against the others', { skip }, async t => {
  const workload = await readTrace(TRACE, 1500);
  const policies = ['ttft', 'kv', 'least-loaded', 'round-robin'];
  const clock = new ManualClock();
  const options = {
    policies,
    workers: 8,
    load: 0.7,
    seed: 1,
    samples: 40,
    engine: {},
    clock,
    onRun: () => {},
  };
  const summary = summarize(replay(workload, { ...options, addon: loadAddon() }));
  const mean = (policy: string): number => summary.policies[policy]!.ttftMs.mean!;
  t.equal(summary.best, 'ttft');
  // Virtual time: the figures are the same on every machine.
  t.ok(mean('ttft') / mean('least-loaded') < 0.75, `${mean('ttft')} of ${mean('least-loaded')}`);
  t.ok(mean('ttft') / mean('kv') < 0.8, `${mean('ttft')} of ${mean('kv')}`);
  t.ok(summary.policies.ttft!.hitRate > 2 * summary.policies['round-robin']!.hitRate);
});
