// Promise: libmillrace_kv.so exports the functions that its header declares and nothing else; a C program and two Python
// processes move blocks through it; a caller of another ABI is refused.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import t from 'tap';

const LIBRARY = 'build/Release/libmillrace_kv.so';
const DEADLINE_MS = 60_000;
const SOURCES = ['native/transfer', 'native/transport', 'native/capi'];
const compiler = process.env.CC ?? 'cc';
const runs = (command: string): boolean => spawnSync(command, ['--version']).status === 0;

interface Ran {
  readonly status: number | null;
  readonly output: string;
}

function run(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Ran {
  const options = { encoding: 'utf8', timeout: DEADLINE_MS, env: { ...process.env, ...env } } as const;
  const { status, stdout, stderr } = spawnSync(command, args, options);
  return { status, output: `${stdout}${stderr}` };
}

/** No source is newer than the library. */
function isUpToDate(): boolean {
  if (!existsSync(LIBRARY)) return false;
  const files = SOURCES.flatMap(folder => readdirSync(folder).map(name => `${folder}/${name}`));
  const builtMs = statSync(LIBRARY).mtimeMs;
  return files.every(file => statSync(file).mtimeMs < builtMs);
}

const lacking = [compiler, 'nm'].find(command => !runs(command));
const missing = isUpToDate() ? lacking : `${LIBRARY} as its sources are, which npm run build:kv makes,`;

t.test('the library', missing === undefined ? {} : { skip: `there is no ${missing} here` }, async t => {
  const listed = run('nm', ['-D', '--defined-only', LIBRARY]);
  t.equal(listed.status, 0);
  const names = listed.output
    .trim()
    .split('\n')
    .map(line => line.split(' ').at(-1)!)
    .sort();
  const header = readFileSync('native/capi/millrace_kv.h', 'utf8');
  const declared = [...header.matchAll(/^MKV_API [^(]*?(mkv_\w+)\(/gm)].map(match => match[1]!).sort();
  t.ok(declared.includes('mkv_submit'), 'the header was read');
  t.same(names, declared);

  const program = 'build/capi-program';
  const source = 'test/transfer/capi-program.c';
  const link = ['-Inative/capi', source, '-o', program, LIBRARY, '-Wl,-rpath,$ORIGIN/Release'];
  const compiled = run(compiler, ['-std=c11', '-Wall', '-Wextra', '-Werror', ...link]);
  t.equal(compiled.status, 0, compiled.output);
  const ran = run(program, []);
  t.equal(ran.status, 0, ran.output);
});

const noPython = missing ?? (runs('python3') ? undefined : 'python3');
for (const transport of ['tcp', 'cma']) {
  const options = noPython === undefined ? {} : { skip: `there is no ${noPython} here` };
  t.test(`two Python processes by ${transport}`, options, async t => {
    const env = { PYTHONPATH: 'transfer/python', PYTHONDONTWRITEBYTECODE: '1' };
    const ran = run('python3', ['test/transfer/capi-exchange.py', transport], env);
    if (/UNSUPPORTED/.test(ran.output) && transport === 'cma') return t.comment(`no cma here: ${ran.output}`);
    t.equal(ran.status, 0, ran.output);
    t.match(ran.output, /^done (numpy|mmap)$/m);
  });
}
