/**
 * Builds a program of random tests, with sanitizers, and runs it:
 * `node native/test/run.mjs core|transfer|cuda [cases] [seed] [sanitizers] [group]`. `core` is what routing uses, over random
 * and damaged inputs; `transfer` the transfer engine, against models, in groups that its main.cc lists; `cuda` its cuda
 * transport, with a double of the driver's library: it shows our state machine, not a GPU. Sanitizers: `address,undefined`,
 * `thread` or `none`. Files are compiled side by side, and only those that changed. Exits with the compiler's or the
 * program's code.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const filesIn = (folder, ending) =>
  readdirSync(`${root}/${folder}`)
    .filter(name => name.endsWith(ending))
    .map(name => `${folder}/${name}`);

const PROGRAMS = {
  core: { include: ['native/include', 'native/core'], folders: ['native/test', 'native/core'] },
  transfer: {
    include: ['native/include', 'native/transfer', 'native/transport'],
    folders: ['native/test/transfer', 'native/transfer', 'native/transport'],
  },
  cuda: {
    include: ['native/include', 'native/transfer', 'native/transport', 'native/test/transfer', 'native/cuda'],
    folders: ['native/test/cuda', 'native/transfer', 'native/transport'],
    files: ['native/test/transfer/host_peer.cc', 'native/test/transfer/transport_contract.cc'],
    // Built as what the transport opens at run time.
    library: { folder: 'native/test/cuda/double', name: 'libcuda.so.1' },
  },
};

const [
  name = 'core',
  cases = '200000',
  seed = String(Date.now() % 2 ** 32),
  sanitizers = 'address,undefined',
  ...group
] = process.argv.slice(2);
const program = PROGRAMS[name];
if (program === undefined) {
  console.error(`program "${name}" is unknown; it is one of ${Object.keys(PROGRAMS).join(', ')}`);
  process.exit(2);
}
const compiler = process.env.CXX ?? 'c++';
const checks =
  sanitizers === 'none'
    ? ['-pthread']
    : [`-fsanitize=${sanitizers}`, '-fno-sanitize-recover=all', '-pthread'];
const flags = ['-std=c++20', '-O1', '-g', '-Wall', '-Wextra', '-Werror', ...checks];
const include = program.include.map(folder => `-I${folder}`);
const variant = sanitizers.replace(',', '-');
const output = `build/random-${name}-${variant}`;
// Of all programs: most of their sources are the same.
const objects = `build/random-objects-${variant}`;

const changedMs = file => statSync(`${root}/${file}`).mtimeMs;
const headers = [...program.include, ...program.folders].flatMap(folder => filesIn(folder, '.h'));
const headersMs = Math.max(...headers.map(changedMs));

async function run(command, args, timeout = 600_000) {
  const child = spawn(command, args, { cwd: root, stdio: 'inherit', timeout });
  child.on('error', error => console.error(`${command}: ${error.message}`));
  const [code] = await Promise.race([once(child, 'exit'), once(child, 'error').then(() => [1])]);
  if (code !== 0) process.exit(code ?? 1);
}

const sources = [...program.folders.flatMap(folder => filesIn(folder, '.cc')), ...(program.files ?? [])];
const objectOf = source => `${objects}/${source.replaceAll('/', '-')}.o`;
const isOld = source => {
  const object = objectOf(source);
  const newest = Math.max(changedMs(source), headersMs);
  return !existsSync(`${root}/${object}`) || changedMs(object) < newest;
};
for (const folder of [output, objects]) mkdirSync(`${root}/${folder}`, { recursive: true });
const toCompile = sources.filter(isOld);
const compileNext = async () => {
  for (let source = toCompile.pop(); source !== undefined; source = toCompile.pop())
    await run(compiler, [...flags, ...include, '-c', source, '-o', objectOf(source)]);
};
await Promise.all(Array.from({ length: availableParallelism() }, compileNext));
const linked = [];
if (program.library !== undefined) {
  const { folder, name: file } = program.library;
  const library = `${output}/${file}`;
  const shared = ['-fPIC', '-shared', `-Wl,-soname,${file}`];
  await run(compiler, [...flags, ...include, ...shared, ...filesIn(folder, '.cc'), '-o', library]);
  linked.push('-Wl,--no-as-needed', library, `-Wl,-rpath,${root}/${output}`);
}
await run(compiler, [...checks, ...sources.map(objectOf), ...linked, '-o', `${output}/program`]);
console.log(`seed ${seed}`);
await run(`${output}/program`, [seed, cases, ...group], 3_600_000);
