/**
 * Fuzzes every parser of the transfer engine: `node native/fuzz/run.mjs SECONDS [TARGET]`. Each native/fuzz/TARGET.cc is built
 * with clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, and run for so many seconds from the inputs in
 * native/fuzz/TARGET/ and those that earlier runs have found (build/fuzz/found/TARGET/). Prints a table; a finding fails the
 * run, its input is saved as build/fuzz/TARGET-crash-… and named. Without clang++ or its runtime nothing is run, with the reason.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';

const SECONDS_MAX = 86_400;
const INPUT_BYTES_MAX = 16_384;
const root = fileURLToPath(new URL('../..', import.meta.url));
const output = 'build/fuzz';
const compiler = process.env.CLANGXX ?? 'clang++';
const folders = ['native/transfer', 'native/transport', 'native/capi'];
const include = [...folders, 'native/include', 'native/test/transfer'].map(folder => `-I${folder}`);
const checks = '-fsanitize=address,undefined';
const flags = `-std=c++20 -O1 -g -fno-omit-frame-pointer ${checks} -fno-sanitize-recover=all -pthread`.split(
  ' ',
);

const filesIn = (folder, ending) =>
  readdirSync(`${root}/${folder}`)
    .filter(name => name.endsWith(ending))
    .map(name => `${folder}/${name}`);
const run = (command, args, stdio) =>
  spawnSync(command, args, { cwd: root, stdio, encoding: 'utf8', maxBuffer: 1 << 30 });

function fail(why) {
  console.error(why);
  process.exit(1);
}

const [secondsText, only] = process.argv.slice(2);
const seconds = Number(secondsText);
if (!(Number.isInteger(seconds) && seconds >= 1 && seconds <= SECONDS_MAX))
  fail(`SECONDS must be a whole number from 1 to ${SECONDS_MAX}; got ${secondsText}`);
const names = filesIn('native/fuzz', '.cc').map(file => basename(file, '.cc'));
if (only !== undefined && !names.includes(only))
  fail(`target "${only}" is unknown; it is one of ${names.join(', ')}`);
const targets = only === undefined ? names : [only];

mkdirSync(`${root}/${output}`, { recursive: true });
const program = ['-x', 'c++', '-fsanitize=fuzzer,address', '-o', `${output}/probe`, '-'];
const probe = spawnSync(compiler, program, {
  cwd: root,
  encoding: 'utf8',
  input: 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }',
});
if (probe.status !== 0) {
  const why = probe.error?.message ?? probe.stderr.trim().split('\n').at(-1);
  console.log(
    `skipped: ${compiler} cannot build a fuzz target (${why}); Debian has it in clang and libclang-rt-dev`,
  );
  process.exit(0);
}

const changedMs = file => statSync(`${root}/${file}`).mtimeMs;
const headers = [...folders, 'native/fuzz', 'native/test/transfer'].flatMap(folder => filesIn(folder, '.h'));
const headersMs = Math.max(...headers.map(changedMs));
const objectOf = source => `${output}/${source.replaceAll('/', '-')}.o`;
const isOld = source => {
  const object = objectOf(source);
  return !existsSync(`${root}/${object}`) || changedMs(object) < Math.max(changedMs(source), headersMs);
};
const sources = folders.flatMap(folder => filesIn(folder, '.cc'));
const toCompile = [...sources, ...targets.map(name => `native/fuzz/${name}.cc`)].filter(isOld);
async function compileNext() {
  for (let source = toCompile.pop(); source !== undefined; source = toCompile.pop()) {
    const args = [...flags, '-fsanitize=fuzzer-no-link', ...include, '-c', source, '-o', objectOf(source)];
    const [code] = await once(spawn(compiler, args, { cwd: root, stdio: 'inherit' }), 'exit');
    if (code !== 0) fail(`${source} does not compile`);
  }
}
await Promise.all(Array.from({ length: availableParallelism() }, compileNext));
const objects = sources.map(objectOf);
for (const name of targets) {
  const linked = run(
    compiler,
    [
      ...flags,
      '-fsanitize=fuzzer',
      objectOf(`native/fuzz/${name}.cc`),
      ...objects,
      '-o',
      `${output}/${name}`,
    ],
    'inherit',
  );
  if (linked.status !== 0) fail(`fuzz target ${name} does not link`);
}

function fuzz(name) {
  const found = `${output}/found/${name}`;
  mkdirSync(`${root}/${found}`, { recursive: true });
  const corpus = existsSync(`${root}/native/fuzz/${name}`) ? [`native/fuzz/${name}`] : [];
  const options = [
    `-max_total_time=${seconds}`,
    `-max_len=${INPUT_BYTES_MAX}`,
    `-artifact_prefix=${output}/${name}-`,
    '-timeout=20',
    '-rss_limit_mb=2048',
    '-print_final_stats=1',
  ];
  const { status, stderr } = run(
    `${output}/${name}`,
    [...options, found, ...corpus],
    ['ignore', 'ignore', 'pipe'],
  );
  const last = pattern => [...stderr.matchAll(pattern)].at(-1)?.[1] ?? '?';
  const row = {
    target: name,
    executions: last(/stat::number_of_executed_units:\s+(\d+)/g),
    perSecond: last(/stat::average_exec_per_sec:\s+(\d+)/g),
    edges: last(/cov: (\d+)/g),
    features: last(/ft: (\d+)/g),
    inputs: last(/corp: (\d+)/g),
    result: status === 0 ? 'no finding' : `FINDING ${last(/Test unit written to (\S+)/g)}`,
  };
  if (status !== 0) console.error(stderr.split('\n').slice(-120).join('\n'));
  return row;
}

const rows = targets.map(fuzz);
console.table(rows);
process.exit(rows.every(row => row.result === 'no finding') ? 0 : 1);
