// Promise: install.cjs never breaks an installation: without cmake-js, without cmake and after a failed build it says
// why, leaves the reason behind and exits 0, or 1 where the addon is required; a fresh addon is not built again.
import { spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import t, { type Test } from 'tap';

type Case = { folder: string; addon: string };

/** A copy of what the build reads, outside of the repository so that it finds no node_modules by itself. */
function unpacked(t: Test, options: { modules: boolean }): Case {
  const folder = mkdtempSync(join(tmpdir(), 'millrace-install-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  for (const name of ['package.json', 'install.cjs', 'CMakeLists.txt', 'native']) {
    cpSync(name, join(folder, name), { recursive: true });
  }
  if (options.modules) symlinkSync(resolve('node_modules'), join(folder, 'node_modules'));
  return { folder, addon: join(folder, 'build', 'Release', 'millrace.node') };
}

function install(
  { folder }: Case,
  env: Record<string, string>,
  args: string[] = [],
): { code: number | null; output: string; status: unknown } {
  const result = spawnSync(process.execPath, [join(folder, 'install.cjs'), ...args], {
    cwd: folder,
    encoding: 'utf8',
    env: { ...process.env, MILLRACE_REQUIRE_ADDON: '', ...env },
  });
  const path = join(folder, 'build', 'addon-status.json');
  const status = existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : null;
  return { code: result.status, output: result.stdout + result.stderr, status };
}

/** Puts a file where the built addon lies. */
function plant(addon: string): void {
  mkdirSync(join(addon, '..'), { recursive: true });
  writeFileSync(addon, 'an addon');
}

t.test('without cmake-js', async t => {
  const place = unpacked(t, { modules: false });
  const { code, output, status } = install(place, {});
  t.equal(code, 0);
  t.match(output, /^millrace: no addon \(cmake-js is not installed\).*\n$/, 'one line');
  t.match(status, { built: false, reason: 'cmake-js is not installed' });
  t.equal(install(place, { MILLRACE_REQUIRE_ADDON: '1' }).code, 1);
});

t.test('without cmake', async t => {
  const { code, status } = install(unpacked(t, { modules: true }), { PATH: '' });
  t.equal(code, 0);
  t.match(status, { built: false, reason: 'cmake is not installed' });
});

const needsCmake = spawnSync('cmake', ['--version']).status === 0 ? {} : { skip: 'cmake is not installed' };

t.test('after a failed build no addon of older sources is left', needsCmake, async t => {
  const place = unpacked(t, { modules: true });
  plant(place.addon);
  writeFileSync(join(place.folder, 'CMakeLists.txt'), 'message(FATAL_ERROR "planted failure")\n');
  const { code, status } = install(place, {}, ['--force']);
  t.equal(code, 0);
  t.match(status, { built: false, reason: /^the build failed: .*/ });
  t.notOk(existsSync(place.addon));
});

t.test('an addon that is newer than its sources is left alone', async t => {
  const place = unpacked(t, { modules: false });
  plant(place.addon);
  const { code, output, status } = install(place, { MILLRACE_REQUIRE_ADDON: '1' });
  t.same([code, output, status], [0, 'millrace: the addon is up to date\n', null]);
  t.equal(readFileSync(place.addon, 'utf8'), 'an addon');
});
