// Promise: layouts and plans move every byte of a block to where it belongs and touch no other; a block that an operation
// may still touch is never handed out again; no transfer is lost, whatever breaks. Random cases against models, in C++. The
// cuda transport runs with a double of the driver's library, which shows our state machine, not a GPU.
import { spawnSync } from 'node:child_process';
import t from 'tap';
import { needsAddon } from './two-agents.js';

const isLong = process.env.MILLRACE_TEST_LONG === '1';
const compiler = process.env.CXX ?? 'c++';
const isAbsent = spawnSync(compiler, ['--version']).status !== 0;
const needsCompiler = isAbsent ? { skip: `no C++ compiler: ${compiler} does not run` } : {};
const seed = process.env.SEED ?? String(Date.now() % 2 ** 32);

// With sanitizers it takes minutes to compile: .ci/run does that, and the long run.
for (const sanitizers of isLong ? ['address,undefined', 'thread'] : ['none']) {
  for (const program of ['transfer', 'cuda']) {
    t.test(`${program}, ${sanitizers}`, needsCompiler, async t => {
      const run = ['native/test/run.mjs', program, isLong ? '200000' : '2000', seed, sanitizers];
      const result = spawnSync(process.execPath, run, { encoding: 'utf8' });
      t.comment(result.stdout);
      t.equal(result.status, 0, result.stderr);
    });
  }
}

t.test('the committed kernels are of their source', async t => {
  const result = spawnSync(process.execPath, ['native/cuda/build.mjs', '--check'], { encoding: 'utf8' });
  t.comment(result.stdout);
  t.equal(result.status, 0, result.stderr);
});

// The double is found where the driver would be.
const needsDouble = isLong || isAbsent ? { skip: 'the double was not built' } : needsAddon;
t.test('device pools from JavaScript, on the double', needsDouble, async t => {
  const env = { ...process.env, LD_LIBRARY_PATH: 'build/random-cuda-none' };
  const script = new URL('device-exchange.js', import.meta.url).pathname;
  const result = spawnSync(process.execPath, [script], { encoding: 'utf8', env, timeout: 60_000 });
  t.equal(result.status, 0, result.stderr);
  t.equal(result.stdout, 'cuda cuda\n');
});
