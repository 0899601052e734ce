// Promise: layouts and plans move every byte of a block to where it belongs and touch no other; a block that an operation
// may still touch is never handed out again; no transfer is lost, whatever breaks. Random cases against models, in C++.
import { spawnSync } from 'node:child_process';
import t from 'tap';

const isLong = process.env.MILLRACE_TEST_LONG === '1';
const compiler = process.env.CXX ?? 'c++';
const isAbsent = spawnSync(compiler, ['--version']).status !== 0;
const needsCompiler = isAbsent ? { skip: `no C++ compiler: ${compiler} does not run` } : {};
const seed = process.env.SEED ?? String(Date.now() % 2 ** 32);

// With sanitizers it takes minutes to compile: .ci/run does that, and the long run.
for (const sanitizers of isLong ? ['address,undefined', 'thread'] : ['none']) {
  t.test(sanitizers, needsCompiler, async t => {
    const run = ['native/test/run.mjs', 'transfer', isLong ? '200000' : '2000', seed, sanitizers];
    const result = spawnSync(process.execPath, run, { encoding: 'utf8' });
    t.comment(result.stdout);
    t.equal(result.status, 0, result.stderr);
  });
}
