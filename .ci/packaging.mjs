/**
 * Proves that the package installs and serves where it will be used. Packs a clean checkout, installs the tarball into
 * an empty project three times (with a C++ toolchain, without one, with --ignore-scripts) and has each installation
 * serve one chat request to its end and close on SIGTERM. Needs npm's registry or its cache. Exit code 1 on the first
 * thing that is not as it has to be, 2 when a step takes too long.
 */
import assert from 'node:assert';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const DEADLINE_MS = 360_000;
const WORK = mkdtempSync(join(tmpdir(), 'millrace-packaging-'));
const TSC = join(ROOT, 'node_modules/typescript/bin/tsc');

/** What may be in the tarball; anything else is a leak. */
const WANTED = [
  /^dist\/.+\.(js|d\.ts)$/,
  /^native\/(binding|capi|core|include|third_party|transfer|transport)\/.+\.(cc|h)$/,
  /^native\/capi\/exports\.map$/,
  /^native\/cuda\/\w+\.(cu|h|inc)$/,
  /^transfer\/python\/millrace_kv\/\w+\.py$/,
  /^(package\.json|README\.md|LICENSE|CMakeLists\.txt|binding\.gyp|install\.cjs)$/,
];
const NEEDED = [
  'dist/cli/main.js',
  'dist/index.js',
  'dist/index.d.ts',
  'dist/plane/pool-thread.js',
  'dist/transfer/index.js',
  'native/cuda/kernels.inc',
  'native/third_party/xxhash.h',
  'native/transfer/agent.cc',
  'native/transport/transports.cc',
  'CMakeLists.txt',
  'install.cjs',
  'LICENSE',
  // Every source that the build names, but those of the program that checks a GPU.
  ...readFileSync(join(ROOT, 'CMakeLists.txt'), 'utf8').matchAll(/native\/(?!test\/)[\w/]+\.cc/g),
].map(String);

const children = new Set();

/** Runs a program to its end and gives its standard output; a non-zero code is an error unless `code` says so. */
async function run(program, args, { cwd = ROOT, env = process.env, code = 0 } = {}) {
  const child = spawn(program, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
  children.add(child);
  let out = '';
  let said = '';
  child.stdout.on('data', bytes => (out += bytes));
  child.stderr.on('data', bytes => (said += bytes));
  const [ended] = await once(child, 'close');
  children.delete(child);
  assert.equal(ended, code, `${program} ${args.join(' ')} ended with ${ended}:\n${out}\n${said}`);
  return out;
}

/** npm's own script, so that it runs also where PATH holds nothing but node and a shell. */
async function findNpm() {
  if (process.env.npm_execpath?.endsWith('npm-cli.js')) return process.env.npm_execpath;
  const prefix = (await run('npm', ['root', '--global'])).trim();
  return join(prefix, 'npm/bin/npm-cli.js');
}

/** Packs what a clean checkout holds: `dist` has to come from `prepare`. */
async function pack(npm) {
  const checkout = join(WORK, 'checkout');
  const listed = await run('git', ['ls-files', '--cached', '--others', '--exclude-standard', '-z']);
  for (const file of listed.split('\0').filter(name => name !== '' && name !== 'node_modules')) {
    mkdirSync(dirname(join(checkout, file)), { recursive: true });
    cpSync(join(ROOT, file), join(checkout, file));
  }
  symlinkSync(join(ROOT, 'node_modules'), join(checkout, 'node_modules'));
  await run(process.execPath, [npm, 'pack', '--pack-destination', WORK], { cwd: checkout });
  const tarball = join(
    WORK,
    readdirSync(WORK).find(name => name.endsWith('.tgz')),
  );
  const files = (await run('tar', ['-tzf', tarball]))
    .trim()
    .split('\n')
    .map(name => name.replace(/^package\//, ''));
  const leaked = files.filter(file => !WANTED.some(pattern => pattern.test(file)));
  assert.deepEqual(leaked, [], 'the tarball holds files that no installation needs');
  assert.deepEqual(
    NEEDED.filter(file => !files.includes(file)),
    [],
    'the tarball lacks files',
  );
  console.log(`packaging: ${files.length} files in the tarball, none of them superfluous`);
  return tarball;
}

/** Installs the tarball into an empty project and returns its folder. */
async function install(npm, tarball, name, flags, env) {
  const project = join(WORK, name);
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), '{ "name": "empty", "private": true, "type": "module" }\n');
  const args = [npm, 'install', '--prefer-offline', '--no-audit', '--no-fund', ...flags, tarball];
  await run(process.execPath, args, { cwd: project, env });
  return project;
}

/** Sends one streamed chat request and checks the whole answer. */
async function chat(url, model) {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model,
      stream: true,
      max_tokens: 8,
      messages: [{ role: 'user', content: 'Hello' }],
    }),
  });
  const text = await response.text();
  assert.equal(response.status, 200, text);
  assert(text.endsWith('data: [DONE]\n\n'), `the stream does not end with [DONE]: ${text.slice(-200)}`);
  const frames = text.split('\n\n').filter(frame => frame.startsWith('data: {'));
  const content = frames.map(frame => JSON.parse(frame.slice(6)).choices[0]?.delta?.content ?? '').join('');
  assert(content.length > 0, `the stream holds no text: ${text}`);
}

/** Starts the installed `millrace serve`, sends a request and stops it. Returns what it said of itself. */
async function serve(project, env) {
  const flags = ['serve', '--json', '--port', '0', '--mock-workers', '1', '--log-level', 'warn'];
  const program = join(project, 'node_modules/.bin/millrace');
  const child = spawn(program, flags, { cwd: project, env, stdio: ['ignore', 'pipe', 'inherit'] });
  children.add(child);
  const ended = once(child, 'exit');
  const line = await Promise.race([
    once(createInterface({ input: child.stdout }), 'line'),
    ended.then(([code]) => assert.fail(`serve ended with ${code} before it listened`)),
  ]);
  const status = JSON.parse(line[0]);
  await chat(status.url, status.models[0].name);
  child.kill('SIGTERM');
  const [code] = await ended;
  children.delete(child);
  assert.equal(code, 0, 'serve ends with 0 on SIGTERM');
  return status;
}

/** Installs, serves and compares the addon's state with what this kind of installation must give. */
async function prove(npm, tarball, { name, flags, env, addon }) {
  const startedMs = performance.now();
  const project = await install(npm, tarball, name, flags, env);
  const status = await serve(project, env);
  assert.equal(status.server, 'uws', `uWebSockets.js serves: ${status.serverNotice}`);
  assert.equal(status.addon.loaded, addon.loaded, status.addon.reason);
  assert.match(status.addon.reason, addon.reason);
  const args = [join(project, 'node_modules/millrace/dist/cli/main.js'), 'doctor', '--json', '--port', '0'];
  const doctor = JSON.parse(await run(process.execPath, args, { cwd: project, env }));
  const check = doctor.checks.find(entry => entry.name === 'addon');
  assert.equal(check.status, addon.loaded ? 'ok' : 'absent');
  if (!addon.loaded) assert.match(check.mend, /npm rebuild millrace/);
  const seconds = ((performance.now() - startedMs) / 1000).toFixed(1);
  console.log(`packaging: ${name}: a request was served, addon: ${status.addon.reason} (${seconds} s)`);
  return project;
}

/** `exports` and `types` lead a TypeScript program under nodenext to the package, and a running one too. */
async function proveTypes(project) {
  const common = [TSC, '--noEmit', '--strict', '--module', 'nodenext', '--moduleResolution', 'nodenext'];
  const types = ['--target', 'es2022', '--typeRoots', join(ROOT, 'node_modules/@types'), '--types', 'node'];
  writeFileSync(
    join(project, 'right.ts'),
    `import { ConfigError, createDataPlane, type DataPlane, type ErrorCode } from 'millrace';
const code: ErrorCode = new ConfigError('port is taken').code;
if (code !== 'MILLRACE_CONFIG') throw new Error(code);
export const start = (url: string): Promise<DataPlane> => createDataPlane({ workers: [url] });
`,
  );
  writeFileSync(join(project, 'wrong.ts'), "import { noSuchExport } from 'millrace';\nnoSuchExport();\n");
  await run(process.execPath, [...common, ...types, 'right.ts'], { cwd: project });
  const said = await run(process.execPath, [...common, ...types, 'wrong.ts'], { cwd: project, code: 2 });
  assert.match(said, /wrong\.ts\(1,10\).*noSuchExport/, 'types are really checked');
  const script = "const { ConfigError } = await import('millrace'); console.log(new ConfigError('x').code);";
  const printed = await run(process.execPath, ['--input-type=module', '-e', script], { cwd: project });
  assert.equal(printed, 'MILLRACE_CONFIG\n');
  console.log('packaging: types and exports resolve');
}

/** A PATH with node and a shell only. */
async function bareEnvironment() {
  const folder = join(WORK, 'bin');
  mkdirSync(folder);
  symlinkSync(process.execPath, join(folder, 'node'));
  symlinkSync((await run('sh', ['-c', 'command -v sh'])).trim(), join(folder, 'sh'));
  return folder;
}

async function main() {
  const npm = await findNpm();
  const tarball = await pack(npm);
  const { MILLRACE_REQUIRE_ADDON: _, ...env } = process.env;
  const kinds = [
    {
      name: 'with a toolchain',
      flags: [],
      env,
      addon: { loaded: true, reason: /^loaded$/ },
    },
    {
      name: 'without a toolchain',
      flags: [],
      env: { ...env, PATH: await bareEnvironment() },
      addon: { loaded: false, reason: /^cmake is not installed$/ },
    },
    {
      name: 'with scripts off',
      flags: ['--ignore-scripts'],
      env,
      addon: { loaded: false, reason: /^the addon is not built; / },
    },
  ];
  for (const kind of kinds) {
    const project = await prove(npm, tarball, kind);
    if (kind.addon.loaded) await proveTypes(project);
  }
}

const deadline = setTimeout(() => {
  console.error(`packaging: not done after ${DEADLINE_MS} ms`);
  cleanUp();
  process.exit(2);
}, DEADLINE_MS);

function cleanUp() {
  clearTimeout(deadline);
  for (const child of children) child.kill('SIGKILL');
  rmSync(WORK, { recursive: true, force: true });
}

try {
  await main();
} catch (error) {
  console.error(`packaging: ${error.message}`);
  process.exitCode = 1;
} finally {
  cleanUp();
}
