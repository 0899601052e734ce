/**
 * Builds the C++ addon with cmake-js into build/Release/millrace.node. npm runs it at install (`install` script); run
 * it by hand with `npm run build:addon`. Does nothing when the addon is newer than its sources, unless `--force`.
 *
 * Millrace works without the addon, so a missing toolchain or a failed build is written to build/addon-status.json and
 * the exit code is 0; with MILLRACE_REQUIRE_ADDON=1 it is 1. MILLRACE_WERROR=1 makes compiler warnings errors.
 * MILLRACE_KV=1 also builds the transfer engine as a C library, build/Release/libmillrace_kv.so; `npm run build:kv` builds
 * that alone, without Node.
 */
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const ROOT = __dirname;
const BUILD = path.join(ROOT, 'build');
// cmake-js works in its own folder: build/ also holds the compiled tests.
const WORK = path.join(BUILD, 'addon');
const BUILT = path.join(WORK, 'Release', 'millrace.node');
const ADDON = path.join(BUILD, 'Release', 'millrace.node');
const STATUS = path.join(BUILD, 'addon-status.json');
const SOURCES = [
  'CMakeLists.txt',
  'native/core',
  'native/cuda',
  'native/transfer',
  'native/transport',
  'native/binding',
  'native/include',
  'native/third_party',
];
const BUILD_DEADLINE_MS = 600_000;

function newestMs(name) {
  const file = path.join(ROOT, name);
  const stat = fs.statSync(file);
  if (!stat.isDirectory()) return stat.mtimeMs;
  return Math.max(...fs.readdirSync(file).map(child => newestMs(path.join(name, child))));
}

function isUpToDate() {
  if (!fs.existsSync(ADDON)) return false;
  return fs.statSync(ADDON).mtimeMs >= Math.max(...SOURCES.map(newestMs));
}

function cmakeJs() {
  try {
    return require.resolve('cmake-js/bin/cmake-js');
  } catch {
    return null;
  }
}

/** The first lines that say what went wrong, without cmake-js's own prefix and its summary of the failure. */
function failureOf(result) {
  if (result.error) return result.error.message;
  const lines = `${result.stdout}\n${result.stderr}`
    .split('\n')
    .map(line => line.replace(/^ERR!? |^ERROR OMG /, '').trim());
  const telling = lines.filter(line => /error|not found|not available|could not/i.test(line));
  const chosen = (telling.length > 0 ? telling : lines).filter(
    line => line !== '' && !/^Process terminated/.test(line),
  );
  return [...new Set(chosen)].slice(0, 3).join(' | ').slice(0, 500);
}

/** Builds; returns null, or the reason why there is no addon. */
function build(force) {
  const tool = cmakeJs();
  if (tool === null) return 'cmake-js is not installed';
  if (spawnSync('cmake', ['--version']).status !== 0) return 'cmake is not installed';
  if (force) fs.rmSync(WORK, { recursive: true, force: true });
  const args = [tool, 'build', '--directory', ROOT, '--out', WORK, '--config', 'Release'];
  if (process.env.MILLRACE_WERROR === '1') args.push('--CDMILLRACE_WERROR=ON');
  if (process.env.MILLRACE_KV === '1') args.push('--CDMILLRACE_KV=ON');
  const result = spawnSync(process.execPath, args, {
    cwd: ROOT,
    encoding: 'utf8',
    timeout: BUILD_DEADLINE_MS,
  });
  if (result.status !== 0) return `the build failed: ${failureOf(result)}`;
  // A running process may have the old file mapped: replace its name, not its bytes.
  fs.mkdirSync(path.dirname(ADDON), { recursive: true });
  const fresh = `${ADDON}.${process.pid}`;
  fs.copyFileSync(BUILT, fresh);
  fs.renameSync(fresh, ADDON);
  return null;
}

function main() {
  const force = process.argv.includes('--force');
  if (!force && isUpToDate()) {
    console.log('millrace: the addon is up to date');
    return;
  }
  const reason = build(force);
  // An addon of older sources is worse than none: its answers could differ from its TypeScript twin's.
  if (reason !== null) fs.rmSync(ADDON, { force: true });
  fs.mkdirSync(BUILD, { recursive: true });
  const status = {
    built: reason === null,
    reason: reason ?? 'built',
    platform: process.platform,
    arch: process.arch,
  };
  fs.writeFileSync(STATUS, `${JSON.stringify(status)}\n`);
  if (reason === null) {
    console.log(`millrace: built the addon, ${path.relative(ROOT, ADDON)}`);
  } else {
    console.error(`millrace: no addon (${reason}); Millrace runs without it, slower`);
    if (process.env.MILLRACE_REQUIRE_ADDON === '1') process.exitCode = 1;
  }
}

main();
