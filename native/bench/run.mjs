/**
 * Builds a bench of the transfer engine and runs it: `node native/bench/run.mjs copy_bench|tcp_bench|ucx_bench [words]`. Only
 * files that changed are compiled, with -O3. The program's output and exit code are this script's.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
const [name, ...words] = process.argv.slice(2);
const filesIn = (folder, ending) =>
  readdirSync(`${root}/${folder}`)
    .filter(file => file.endsWith(ending))
    .map(file => `${folder}/${file}`);
const benches = filesIn('native/bench', '.cc').map(file => file.slice('native/bench/'.length, -'.cc'.length));
if (!benches.includes(name)) {
  console.error(`bench "${name}" is unknown; it is one of ${benches.join(', ')}`);
  process.exit(2);
}

const folders = ['native/transfer', 'native/transport'];
const output = 'build/native-bench';
const changedMs = path => statSync(`${root}/${path}`).mtimeMs;
const headersMs = Math.max(...folders.flatMap(folder => filesIn(folder, '.h')).map(changedMs));
const flags = ['-std=c++20', '-O3', '-fno-exceptions', '-fno-rtti', '-pthread'];
const include = ['native/include', ...folders].map(folder => `-I${folder}`);
const compiler = process.env.CXX ?? 'c++';

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', timeout: 600_000 });
  if (error !== undefined) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

mkdirSync(`${root}/${output}`, { recursive: true });
const objects = [`native/bench/${name}.cc`, ...folders.flatMap(folder => filesIn(folder, '.cc'))].map(
  source => {
    const object = `${output}/${source.replaceAll('/', '-')}.o`;
    const isOld =
      !existsSync(`${root}/${object}`) || changedMs(object) < Math.max(changedMs(source), headersMs);
    if (isOld) run(compiler, [...flags, ...include, '-c', source, '-o', object]);
    return object;
  },
);
run(compiler, ['-pthread', ...objects, '-o', `${output}/${name}`]);
run(`${output}/${name}`, words);
