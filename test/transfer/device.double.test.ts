// Promise: an agent moves blocks between host pools and pools on a device; the compiled kernels that are committed are of their
// source. A double of the driver's library is in the driver's place: it shows that the faces and the transport go together,
// and nothing about a GPU.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync } from 'node:fs';
import t from 'tap';
import { needsAddon } from './two-agents.js';

const DOUBLE = 'native/test/cuda/double';
const FOLDER = 'build/driver-double';
const compiler = process.env.CXX ?? 'c++';
const isAbsent = spawnSync(compiler, ['--version']).status !== 0;
const needsDouble = isAbsent ? { skip: `no C++ compiler: ${compiler} does not run` } : needsAddon;
t.setTimeout(300_000);

t.test('the committed kernels', async t => {
  const result = spawnSync(process.execPath, ['native/cuda/build.mjs', '--check'], { encoding: 'utf8' });
  t.comment(result.stdout);
  t.equal(result.status, 0, result.stderr);
});

t.test('device pools from JavaScript', needsDouble, async t => {
  mkdirSync(FOLDER, { recursive: true });
  const sources = readdirSync(DOUBLE).filter(name => name.endsWith('.cc'));
  const flags = ['-std=c++20', '-pthread', '-fPIC', '-shared', '-Wl,-soname,libcuda.so.1'];
  const output = `${FOLDER}/libcuda.so.1`;
  const built = spawnSync(compiler, [...flags, ...sources.map(name => `${DOUBLE}/${name}`), '-o', output], {
    encoding: 'utf8',
  });
  t.equal(built.status, 0, built.stderr);
  // Found where the driver would be.
  const env = { ...process.env, LD_LIBRARY_PATH: FOLDER };
  const script = new URL('device-exchange.js', import.meta.url).pathname;
  const result = spawnSync(process.execPath, [script], { encoding: 'utf8', env, timeout: 60_000 });
  t.equal(result.status, 0, result.stderr);
  t.equal(result.stdout, 'cuda cuda\n');
});
