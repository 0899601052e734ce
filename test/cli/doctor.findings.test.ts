// Promise: doctor finds the absence of each thing, says what it costs and what mends it, and exits 1 only if serve cannot run.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import type { Check } from '#millrace/cli/doctor/check.js';
import { shownBytes } from '#millrace/cli/doctor/check.js';
import type { Probe } from '#millrace/cli/doctor/probe.js';
import { systemProbe } from '#millrace/cli/doctor/probe.js';
import { canServe, examine, report } from '#millrace/cli/doctor.js';
import { loadConfig } from '#millrace/config.js';

const MIB = 1024 ** 2;
const GIB = 1024 ** 3;
const config = loadConfig(
  { policies: ['p'], tokenizers: ['t'] },
  { options: { poolThreads: 3, port: 8000 } },
);

const limitsFile = (files: string, locked: string): string =>
  `Limit                     Soft Limit           Hard Limit           Units     
Max open files            ${files.padEnd(20)} ${files.padEnd(20)} files     
Max locked memory         ${locked.padEnd(20)} ${locked.padEnd(20)} bytes     
`;

const FILES: Readonly<Record<string, string>> = {
  '/proc/self/limits': limitsFile('65536', 'unlimited'),
  '/proc/self/cgroup': '0::/pods/a\n',
  '/sys/fs/cgroup/pods/a/memory.max': 'max\n',
  '/sys/fs/cgroup/pods/a/cpu.max': 'max 100000\n',
  '/proc/meminfo': 'MemTotal:  1 kB\nHugePages_Total:    1024\n',
  '/sys/kernel/mm/transparent_hugepage/enabled': 'always [madvise] never\n',
};
const PROGRAMS: Readonly<Record<string, string>> = {
  'g++': 'g++ 12',
  make: 'make 4',
  cmake: 'cmake 3',
  'nats-server': 'nats-server: v2.10.1\n',
  ldconfig: `2 libs found in cache
\tlibucp.so.0 (libc6,x86-64) => /lib/libucp.so.0
\tlibucs.so.0 (libc6,x86-64) => /lib/libucs.so.0
\tlibcuda.so.1 (libc6,x86-64) => /lib/libcuda.so.1
`,
};

interface Missing {
  readonly files?: Readonly<Record<string, string | null>>;
  readonly programs?: Readonly<Record<string, string | null>>;
  readonly paths?: readonly string[];
  readonly probe?: Partial<Probe>;
}

/** A machine that has everything, but for what is given. */
function machine({ files = {}, programs = {}, paths = ['/usr/bin/apt-get'], probe = {} }: Missing): Probe {
  return {
    nodeVersion: '20.18.0',
    platform: 'linux',
    arch: 'x64',
    addon: { loaded: true, reason: 'loaded', path: '/p/millrace.node' },
    packageFolder: '/app/node_modules/millrace/',
    cpus: 8,
    memoryBytes: 64 * GIB,
    readText: path => ({ ...FILES, ...files })[path] ?? null,
    exists: path => paths.includes(path),
    list: folder => (folder === '/dev' ? ['null', 'nvidia0', 'nvidia1', 'nvidiactl'] : []),
    run: program => ({ ...PROGRAMS, ...programs })[program] ?? null,
    load: async () => null,
    listen: async () => null,
    fileSystemBytes: () => 8 * GIB,
    ...probe,
  };
}

const failsToLoad = (name: string): Partial<Probe> => ({
  load: async module => (module === name ? 'no binary for this platform' : null),
});
const withoutAddon = (reason: string): Partial<Probe> => ({ addon: { loaded: false, reason, path: null } });
const CGROUP_1 = {
  '/proc/self/cgroup': '4:memory:/box\n1:cpu,cpuacct:/box\n0::/\n',
  '/sys/fs/cgroup/pods/a/memory.max': null,
  '/sys/fs/cgroup/pods/a/cpu.max': null,
};

type Expected = readonly [name: string, status: Check['status'], found: RegExp, mend: RegExp];
const CASES: readonly (readonly [what: string, missing: Missing, expected: Expected])[] = [
  ['old Node', { probe: { nodeVersion: '20.17.9' } }, ['node', 'problem', /20\.17\.9/, /install/]],
  [
    'no compiler',
    { probe: withoutAddon('cmake is not installed'), programs: { 'g++': null, cmake: null } },
    ['addon', 'absent', /not installed: g\+\+, cmake/, /^apt-get install -y g\+\+ cmake && npm rebuild/],
  ],
  [
    'no compiler where packages have other names',
    { probe: withoutAddon('x'), programs: { 'g++': null }, paths: ['/usr/bin/dnf'] },
    ['addon', 'absent', /not installed: g\+\+/, /^dnf install -y gcc-c\+\+ && /],
  ],
  [
    'scripts were off, in a checkout',
    { probe: { ...withoutAddon('the addon is not built'), packageFolder: '/src/millrace/' } },
    ['addon', 'absent', /^the addon is not built$/, /^npm run build:addon$/],
  ],
  [
    'addon switched off',
    { probe: withoutAddon('disabled by MILLRACE_NO_ADDON=1') },
    ['addon', 'absent', /disabled/, /^unset MILLRACE_NO_ADDON$/],
  ],
  ['no uWS', { probe: failsToLoad('uWebSockets.js') }, ['uws', 'absent', /no binary/, /npm install/]],
  [
    'no native tokenizers',
    { probe: failsToLoad('tokenizers') },
    ['tokenizers', 'absent', /no binary/, /optional/],
  ],
  ['port taken', { probe: { listen: async () => 'EADDRINUSE' } }, ['port', 'problem', /8000/, /--port/]],
  [
    'address of another host',
    { probe: { listen: async () => 'EADDRNOTAVAIL' } },
    ['port', 'problem', /no address of this host/, /--host/],
  ],
  ['one CPU', { probe: { cpus: 1 } }, ['cpus', 'warning', /^1 CPUs/, /--pool-threads 1/]],
  [
    'CPU quota of cgroup 2',
    { files: { '/sys/fs/cgroup/pods/a/cpu.max': '250000 100000\n' } },
    ['cpus', 'warning', /cgroup pays for 2\.5/, /--pool-threads 1/],
  ],
  [
    'CPU quota of cgroup 1',
    {
      files: {
        ...CGROUP_1,
        '/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us': '300000\n',
        '/sys/fs/cgroup/cpu/box/cpu.cfs_period_us': '100000\n',
      },
    },
    ['cpus', 'warning', /pays for 3;/, /--pool-threads 2/],
  ],
  [
    'memory limit of cgroup 2',
    { files: { '/sys/fs/cgroup/pods/a/memory.max': `${512 * MIB}\n` } },
    ['memory', 'warning', /^512 MiB, limit of the cgroup; .* 3\.8 GiB/, /retainedBytesMax/],
  ],
  [
    'memory limit of cgroup 1',
    { files: { ...CGROUP_1, '/sys/fs/cgroup/memory/box/memory.limit_in_bytes': `${GIB}\n` } },
    ['memory', 'warning', /^1 GiB, limit of the cgroup/, /--pool-threads/],
  ],
  [
    'memory limit inside a container, whose path is not mounted',
    { files: { '/sys/fs/cgroup/pods/a/memory.max': null, '/sys/fs/cgroup/memory.max': `${GIB}` } },
    ['memory', 'warning', /^1 GiB, limit of the cgroup/, /./],
  ],
  ['little memory', { probe: { memoryBytes: GIB } }, ['memory', 'warning', /^1 GiB, of the machine/, /./]],
  [
    'few files',
    { files: { '/proc/self/limits': limitsFile('1024', 'unlimited') } },
    ['files', 'warning', /^1024 open files; 4096 requests .* 9216/, /ulimit -n 9216/],
  ],
  [
    'little locked memory',
    { files: { '/proc/self/limits': limitsFile('65536', '65536') } },
    ['memlock', 'absent', /^64 KiB/, /ulimit -l unlimited/],
  ],
  ['no huge pages', { files: { '/proc/meminfo': '' } }, ['hugepages', 'absent', /^0 reserved/, /sysctl/]],
  ['no /dev/shm', { probe: { fileSystemBytes: () => null } }, ['shm', 'absent', /no \/dev\/shm/, /shm-size/]],
  ['small /dev/shm', { probe: { fileSystemBytes: () => 64 * MIB } }, ['shm', 'absent', /64 MiB/, /=8g/]],
  ['no GPU', { probe: { list: () => [] } }, ['cuda', 'absent', /no GPU .* is there/, /--gpus all/]],
  ['no driver', { programs: { ldconfig: '' } }, ['cuda', 'warning', /^2 GPUs .* no libcuda/, /driver/]],
  ['no UCX', { programs: { ldconfig: null } }, ['ucx', 'absent', /libucp.*libucs/, /libucx0/]],
  ['no NATS', { programs: { 'nats-server': null } }, ['nats', 'absent', /no nats-server/, /nats-server/]],
];

t.test('a machine with everything has no complaint', async t => {
  const checks = await examine(machine({}), config);
  t.same(
    checks.filter(check => check.status !== 'ok'),
    [],
  );
  t.equal(new Set(checks.map(check => check.name)).size, 14);
  t.ok(canServe(checks));
  t.match(report('1.2.3', checks), /^millrace 1\.2\.3 doctor\n[\s\S]*can run here\.\n$/);
});

t.test('each absence is found, with its cost and its cure', async t => {
  for (const [what, missing, [name, status, found, mend]] of CASES) {
    const checks = await examine(machine(missing), config);
    const check = checks.find(entry => entry.name === name)!;
    t.equal(check.status, status, what);
    t.match(check.found, found, what);
    t.match(check.mend, mend, what);
    t.ok((check.cost ?? '').length > 10, `${what}: names the cost`);
    t.equal(canServe(checks), status !== 'problem', what);
    t.match(report('1', checks), new RegExp(`${status} +${name} .*\n +costs: .*\n +mend: `), what);
  }
});

t.test('a library that the loader does not list is found in its folder', async t => {
  const paths = ['/usr/lib64/libucp.so.0', '/usr/local/lib/libucs.so.0'];
  const checks = await examine(machine({ programs: { ldconfig: null }, paths }), config);
  t.equal(checks.find(check => check.name === 'ucx')!.found, paths.join(', '));
});

t.test('the real machine: what is there is seen', async t => {
  const probe = systemProbe();
  t.equal((await probe.load('no-such-package-here')) === null, false);
  t.equal(await probe.load('yaml'), null);
  t.equal(probe.run('no-such-program-here', []), null);
  t.equal(probe.run('node', ['--version']), `${process.version}\n`);
  t.equal(probe.readText('/no/such/file'), null);
  t.same(probe.list('/no/such/folder'), []);
  t.equal(probe.fileSystemBytes('/no/such/folder'), null);
  t.ok(probe.fileSystemBytes('/')! > MIB);
  t.equal(shownBytes(1536 * MIB), '1.5 GiB');
});

const main = fileURLToPath(import.meta.resolve('#millrace/cli/main.js'));
async function doctor(t: Test, ...flags: string[]): Promise<{ code: number; text: string }> {
  const child = spawn(process.execPath, [main, 'doctor', ...flags]);
  t.teardown(() => child.kill('SIGKILL'));
  let text = '';
  child.stdout.on('data', bytes => {
    text += String(bytes);
  });
  const [code] = (await once(child, 'close')) as [number];
  return { code, text };
}

t.test('the command: JSON and exit codes', async t => {
  const free = await doctor(t, '--json', '--port', '0');
  t.equal(free.code, 0);
  const said = JSON.parse(free.text) as { canServe: boolean; checks: Check[] };
  t.equal(said.canServe, true);
  t.equal(said.checks.find(check => check.name === 'node')!.found.includes(process.versions.node), true);

  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  const taken = await doctor(t, '--port', String((server.address() as AddressInfo).port));
  t.equal(taken.code, 1);
  t.match(taken.text, /problem +port .*another process listens there[\s\S]*cannot run here: port\.\n$/);
  t.equal((await doctor(t, '--jsn')).code, 2);
});
