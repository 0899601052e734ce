// Promise: installing never fails for want of a toolchain, says why there is no addon, and fails when one is required.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, utimesSync } from 'node:fs';
import { join, resolve } from 'node:path';
import t, { type Test } from 'tap';

const ROOT = resolve(import.meta.dirname, '../../..');
const NEEDED = ['install.cjs', 'package.json', 'CMakeLists.txt', 'native'];
/** A `cmake` that is there, and whose every build fails. */
const BROKEN_CMAKE = `#!/bin/sh
case "$1" in --version) echo "cmake version 3.25.1"; exit 0 ;; esac
echo "CMake Error: CMAKE_CXX_COMPILER not set, after EnableLanguage" >&2
exit 1
`;

interface Installed {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

const NOTHING = '#!/bin/sh\n';

/** A copy of what install.cjs needs, and a PATH with nothing but node and `tools`. */
function copyOf(t: Test, tools: Record<string, string> = {}) {
  const dir = t.testdir({ bin: tools, package: {} });
  const root = join(dir, 'package');
  for (const name of NEEDED) cpSync(join(ROOT, name), join(root, name), { recursive: true });
  const path = join(dir, 'bin');
  for (const tool of Object.keys(tools)) chmodSync(join(path, tool), 0o755);
  symlinkSync(process.execPath, join(path, 'node'));
  const install = async (env: Record<string, string> = {}, flags: string[] = []): Promise<Installed> => {
    const child = spawn(process.execPath, [join(root, 'install.cjs'), ...flags], {
      env: { PATH: path, HOME: dir, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const said = { stdout: '', stderr: '' };
    child.stdout.on('data', bytes => {
      said.stdout += bytes;
    });
    child.stderr.on('data', bytes => {
      said.stderr += bytes;
    });
    const [code] = (await once(child, 'close')) as [number | null];
    return { code, ...said };
  };
  const status = (): unknown => JSON.parse(readFileSync(join(root, 'build/addon-status.json'), 'utf8'));
  return { install, status, addon: join(root, 'build/Release/millrace.node') };
}

const withoutAddon = (reason: string | RegExp): object => ({
  built: false,
  reason,
  platform: process.platform,
  arch: process.arch,
});

t.test('without a toolchain: the reason is written down and the install goes on', async t => {
  const { install, status, addon } = copyOf(t);
  const { code, stdout, stderr } = await install();
  t.equal(code, 0);
  t.equal(stdout, '');
  t.equal(stderr, 'millrace: no addon (cmake is not installed); Millrace runs without it, slower\n');
  t.same(status(), withoutAddon('cmake is not installed'));
  t.notOk(existsSync(addon));
});

t.test('a required addon makes the same install fail', async t => {
  const { install, status } = copyOf(t);
  const { code, stderr } = await install({ MILLRACE_REQUIRE_ADDON: '1' });
  t.equal(code, 1);
  t.match(stderr, 'cmake is not installed');
  t.same(status(), withoutAddon('cmake is not installed'));
});

t.test('a build that fails: what the tools said is the reason, and an old addon is taken away', async t => {
  const { install, status, addon } = copyOf(t, { cmake: BROKEN_CMAKE, 'g++': NOTHING, make: NOTHING });
  mkdirSync(join(addon, '..'), { recursive: true });
  cpSync(join(ROOT, 'package.json'), addon);
  utimesSync(addon, 1, 1);
  const { code, stderr } = await install();
  t.equal(code, 0);
  t.match(stderr, /^millrace: no addon \(the build failed: [^\n]+\n$/, 'one line');
  t.match(status(), withoutAddon(/^the build failed: .*CMAKE_CXX_COMPILER not set/));
  t.notOk(existsSync(addon), 'an addon of older sources is worse than none');
});

t.test('CMake without a compiler', async t => {
  const { install, status } = copyOf(t, { cmake: BROKEN_CMAKE });
  t.equal((await install()).code, 0);
  t.match(status(), withoutAddon(/^the build failed: .*compiler/i));
  t.equal((await install({ MILLRACE_REQUIRE_ADDON: '1' })).code, 1);
});

t.test('an addon newer than its sources is left as it is, toolchain or not, unless forced', async t => {
  const { install, status, addon } = copyOf(t);
  mkdirSync(join(addon, '..'), { recursive: true });
  cpSync(join(ROOT, 'package.json'), addon);
  const laterSeconds = Math.ceil(Date.now() / 1000) + 3600;
  utimesSync(addon, laterSeconds, laterSeconds);
  const env = { MILLRACE_REQUIRE_ADDON: '1' };
  t.match(await install(env), { code: 0, stdout: 'millrace: the addon is up to date\n', stderr: '' });
  t.ok(existsSync(addon));
  t.equal((await install(env, ['--force'])).code, 1);
  t.notOk(existsSync(addon));
  t.same(status(), withoutAddon('cmake is not installed'));
});
