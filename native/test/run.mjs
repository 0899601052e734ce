/**
 * Builds the addon's core with the address and undefined-behaviour sanitizers and runs it over random and damaged
 * inputs: `node native/test/run.mjs [cases] [seed]`. Exits with the compiler's or the program's code.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const cases = process.argv[2] ?? '200000';
const seed = process.argv[3] ?? String(Date.now() % 2 ** 32);
const root = fileURLToPath(new URL('../..', import.meta.url));
const program = 'build/sanitized';
const index = ['holders', 'names', 'read', 'sweep', 'table', 'write'].map(part => `prefix_index_${part}`);
const core = [
  'block_hash',
  'event_decode',
  'event_reader',
  'frame_parser',
  'frame_scan',
  'msgpack_reader',
  'reserve',
  ...index,
].map(name => `native/core/${name}.cc`);
const flags = ['-std=c++20', '-O1', '-g', '-Wall', '-Wextra', '-Werror', '-fno-sanitize-recover=all'];

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', timeout: 600_000 });
  if (error) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

mkdirSync(`${root}/build`, { recursive: true });
const paths = [
  '-Inative/include',
  '-Inative/core',
  'native/test/sanitized.cc',
  'native/test/event_random.cc',
  'native/test/index_random.cc',
  ...core,
  '-o',
  program,
];
run(process.env.CXX ?? 'c++', [...flags, '-fsanitize=address,undefined', ...paths]);
console.log(`seed ${seed}`);
run(`./${program}`, [seed, cases]);
