/** The checks of `millrace doctor` for software: Node, the addon, uWebSockets.js, tokenizers, NATS, UCX and CUDA. */
import { type Check, fault, ok } from './check.js';
import type { Probe } from './probe.js';

/** The same as `engines.node` of package.json. */
const NODE_MIN = [20, 18] as const;

/** What a build of the addon needs; of a row's programs, one is enough, and the first is named. */
const BUILD_PROGRAMS = [['g++', 'clang++'], ['make', 'ninja'], ['cmake']] as const;

/** How a package manager of the system installs; the first one found is named. */
const INSTALLERS: readonly (readonly [program: string, command: string])[] = [
  ['/usr/bin/apt-get', 'apt-get install -y'],
  ['/usr/bin/dnf', 'dnf install -y'],
  ['/sbin/apk', 'apk add'],
  ['/opt/homebrew/bin/brew', 'brew install'],
];
/** Names of a package where it is not called the same everywhere; the first is Debian's. */
const PACKAGE_NAMES: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  'g++': { dnf: 'gcc-c++', brew: 'gcc' },
  libucx0: { dnf: 'ucx', apk: 'ucx', brew: 'ucx' },
};

/** The command that installs packages of the system, given by their Debian names. */
function install(probe: Probe, ...packages: readonly string[]): string {
  const found = INSTALLERS.find(([program]) => probe.exists(program));
  const manager = found?.[1].split(' ', 1)[0] ?? '';
  const names = packages.map(name => PACKAGE_NAMES[name]?.[manager] ?? name).join(' ');
  return found === undefined ? `install ${names} with the system's package manager` : `${found[1]} ${names}`;
}

/** The command that runs the package's install script again, in an application or in a checkout. */
function rebuild(probe: Probe): string {
  const installed = /[\\/]node_modules[\\/][^\\/]+[\\/]?$/.test(probe.packageFolder);
  return installed ? 'npm rebuild millrace --ignore-scripts=false' : 'npm run build:addon';
}

/** Node.js, of which an older release lacks what the ring and the sockets need. */
export function checkNode(probe: Probe): Check {
  const [major = 0, minor = 0] = probe.nodeVersion.split('.').map(Number);
  const found = `Node.js ${probe.nodeVersion}, ${probe.platform} ${probe.arch}`;
  if (major > NODE_MIN[0] || (major === NODE_MIN[0] && minor >= NODE_MIN[1])) return ok('node', found);
  const wanted = NODE_MIN.join('.');
  return fault('node', 'problem', found, `Millrace needs Node.js ${wanted} or later`, 'nvm install 22');
}

/** The C++ addon: loaded, or the reason that its build left behind. */
export function checkAddon(probe: Probe): Check {
  const { loaded, reason, path } = probe.addon;
  if (loaded) return ok('addon', `native (C++), ${path}`);
  const cost = 'pure JavaScript serves: one pool thread, one socket thread, slower tokenizing and hashing';
  if (reason.includes('MILLRACE_NO_ADDON'))
    return fault('addon', 'absent', reason, cost, 'unset MILLRACE_NO_ADDON');
  const missing = BUILD_PROGRAMS.filter(programs =>
    programs.every(program => probe.run(program, ['--version']) === null),
  ).map(programs => programs[0]);
  const tools = missing.length === 0 ? '' : `${install(probe, ...missing)} && `;
  const found = missing.length === 0 ? reason : `${reason}; not installed: ${missing.join(', ')}`;
  return fault('addon', 'absent', found, cost, `${tools}${rebuild(probe)}`);
}

/** uWebSockets.js, the faster of the two HTTP servers. */
export async function checkUws(probe: Probe): Promise<Check> {
  const reason = await probe.load('uWebSockets.js');
  if (reason === null) return ok('uws', 'uWebSockets.js loads');
  return fault(
    'uws',
    'absent',
    `uWebSockets.js does not load: ${reason}`,
    'node:http serves: about twice the CPU per request, and one socket thread',
    'npm install millrace, under a Node.js release with long-term support on glibc (not musl)',
  );
}

/** The native tokenizers package, for model folders. */
export async function checkTokenizers(probe: Probe): Promise<Check> {
  const reason = await probe.load('tokenizers');
  if (reason === null) return ok('tokenizers', 'the native tokenizers package loads');
  return fault(
    'tokenizers',
    'absent',
    `the native tokenizers package does not load: ${reason}`,
    'model folders are tokenized in JavaScript, which takes several times the CPU',
    'npm install --include=optional',
  );
}

/** A NATS server, for membership over more than one host. */
export function checkNats(probe: Probe): Check {
  const version = probe.run('nats-server', ['--version']);
  if (version !== null) return ok('nats', version.trim());
  return fault(
    'nats',
    'absent',
    'no nats-server on PATH',
    'nothing on one host: workers are named by --worker or in the configuration file',
    install(probe, 'nats-server'),
  );
}

const LIBRARY_FOLDERS = [
  '/usr/lib',
  '/usr/lib64',
  '/usr/local/lib',
  '/usr/local/cuda/lib64',
  '/usr/lib/x86_64-linux-gnu',
  '/usr/lib/aarch64-linux-gnu',
];

/**
 * Where the dynamic loader finds a library: its cache, then the standard folders; null: nowhere.
 * `dlopen` itself is not tried: a library of another build may run code as it loads.
 */
function findLibrary(probe: Probe, library: string): string | null {
  const cache = probe.run('ldconfig', ['-p']) ?? probe.run('/sbin/ldconfig', ['-p']) ?? '';
  for (const line of cache.split('\n')) {
    const [name, path] = line.trim().split(' => ');
    if (path !== undefined && name!.split(' ', 1)[0] === library) return path;
  }
  const folder = LIBRARY_FOLDERS.find(entry => probe.exists(`${entry}/${library}`));
  return folder === undefined ? null : `${folder}/${library}`;
}

/** UCX, the library of transfers over RDMA. */
export function checkUcx(probe: Probe): Check {
  const wanted = ['libucp.so.0', 'libucs.so.0'];
  const paths = wanted.map(library => findLibrary(probe, library));
  if (paths.every(path => path !== null)) return ok('ucx', paths.join(', '));
  const missing = wanted.filter((_, index) => paths[index] === null);
  return fault(
    'ucx',
    'absent',
    `not found: ${missing.join(', ')}`,
    'nothing for serving; no transfer of KV blocks over RDMA',
    install(probe, 'libucx0'),
  );
}

/** GPUs and the library of their driver. */
export function checkCuda(probe: Probe): Check {
  const library = findLibrary(probe, 'libcuda.so.1');
  const devices = probe.list('/dev').filter(name => /^nvidia\d+$/.test(name)).length;
  const named = `${devices} GPU${devices === 1 ? '' : 's'}`;
  if (library !== null && devices > 0) return ok('cuda', `${named}, ${library}`);
  if (devices > 0) {
    return fault(
      'cuda',
      'warning',
      `${named} in /dev, but no libcuda.so.1`,
      'nothing for serving; the driver is not visible here, so blocks in GPU memory cannot be reached',
      'start the container with --gpus all, or install the NVIDIA driver of the host',
    );
  }
  return fault(
    'cuda',
    'absent',
    library === null ? 'no GPU in /dev and no libcuda.so.1' : `no GPU in /dev (${library} is there)`,
    'nothing for serving: GPUs belong to the workers; no transfer of KV blocks in GPU memory of this host',
    'run on the GPU host, in a container with --gpus all',
  );
}
