// Promise: layouts and plans move every byte of a block to where it belongs and touch no other; a block that an operation
// may still touch is never handed out again; no transfer is lost, whatever breaks. Random cases against models, in C++. The
// cuda transport runs with a double of the driver's library, which shows our state machine, not a GPU.
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import t from 'tap';
import { machineFacts } from './machine-facts.js';

const compiler = process.env.CXX ?? 'c++';
const isAbsent = spawnSync(compiler, ['--version']).status !== 0;
// It takes a minute to compile on a quiet machine, and many on a busy one; .ci/run has steps of its own for it.
const isShort = process.env.MILLRACE_TEST_LONG !== '1';
const skipped = isShort ? 'part of npm run test:long and .ci/run: node native/test/run.mjs transfer' : null;
const reason = isAbsent ? `no C++ compiler: ${compiler} does not run` : skipped;
const options = reason === null ? {} : { skip: reason };
const seed = process.env.SEED ?? String(Date.now() % 2 ** 32);

for (const sanitizers of ['address,undefined', 'thread']) {
  for (const program of ['transfer', 'cuda']) {
    t.test(`${program}, ${sanitizers}`, options, async t => {
      const run = ['native/test/run.mjs', program, '200000', seed, sanitizers];
      const result = spawnSync(process.execPath, run, { encoding: 'utf8' });
      t.comment(result.stdout);
      t.equal(result.status, 0, result.stderr);
    });
  }
}

t.test('a million transfers under aborts and deaths', options, async t => {
  const sanitizers = 'address,undefined';
  const run = ['native/test/run.mjs', 'transfer', '200000', seed, sanitizers, 'aborts'];
  const result = spawnSync(process.execPath, run, { encoding: 'utf8' });
  t.equal(result.status, 0, result.stderr);
  const [, operations, counts] =
    /^abort fuzz: (\d+) operations; (.*), every one completed$/m.exec(result.stdout) ?? [];
  const happened = counts?.split(', ').map(count => {
    const at = count.lastIndexOf(' ');
    return [count.slice(0, at), Number(count.slice(at))];
  });
  t.equal(operations, '1000000');
  // A foreign byte or a transfer that hangs ends the program with its words, and there is no result.
  const facts = {
    test: 'transfer-aborts',
    ...machineFacts(),
    seed,
    sanitizers,
    operations: Number(operations),
  };
  const text = JSON.stringify({ ...facts, happened: Object.fromEntries(happened ?? []) }, null, 2);
  writeFileSync('test/results/transfer-aborts.json', `${text}\n`);
});
