/**
 * Builds a program of random tests with sanitizers and runs it:
 * `node native/test/run.mjs core|transfer [cases] [seed] [sanitizers]`. `core` is what routing uses, over random and damaged
 * inputs; `transfer` the transfer engine, against models. Sanitizers: `address,undefined` or `thread`. Exits with the
 * compiler's or the program's code.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const sources = folder =>
  readdirSync(`${root}/${folder}`)
    .filter(name => name.endsWith('.cc'))
    .map(name => `${folder}/${name}`);

const PROGRAMS = {
  core: {
    include: ['native/include', 'native/core'],
    sources: () => [...sources('native/test'), ...sources('native/core')],
  },
  transfer: {
    include: ['native/include', 'native/transfer', 'native/transport'],
    sources: () => [
      ...sources('native/test/transfer'),
      ...sources('native/transfer'),
      ...sources('native/transport'),
    ],
  },
};

const [
  name = 'core',
  cases = '200000',
  seed = String(Date.now() % 2 ** 32),
  sanitizers = 'address,undefined',
] = process.argv.slice(2);
const program = PROGRAMS[name];
if (program === undefined) {
  console.error(`program "${name}" is unknown; it is one of ${Object.keys(PROGRAMS).join(', ')}`);
  process.exit(2);
}
const flags = ['-std=c++20', '-O1', '-g', '-Wall', '-Wextra', '-Werror', '-pthread'];
const checks = [`-fsanitize=${sanitizers}`, '-fno-sanitize-recover=all'];
const binary = `build/sanitized-${name}-${sanitizers.replace(',', '-')}`;

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', timeout: 600_000 });
  if (error) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

mkdirSync(`${root}/build`, { recursive: true });
const include = program.include.map(folder => `-I${folder}`);
run(process.env.CXX ?? 'c++', [...flags, ...checks, ...include, ...program.sources(), '-o', binary]);
console.log(`seed ${seed}`);
run(`./${binary}`, [seed, cases]);
