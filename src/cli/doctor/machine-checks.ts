/** The checks of `millrace doctor` for what the machine grants: the port, files, memory, huge pages, CPUs, /dev/shm. */
import type { Config } from '../../config.js';
import { type Check, fault, ok, shownBytes } from './check.js';
import type { Probe } from './probe.js';

const GIB = 1024 ** 3;
/** A client's connection and an engine's. */
const FILES_PER_REQUEST = 2;
/** Connections that wait for a request, rings, logs and the runtime's own files. */
const FILES_BESIDE = 1024;
/** Heap and code of the process without any request. */
const IDLE_BYTES = 256 * 1024 ** 2;
/** cgroup v1 writes a number near 2^63 for "no limit". */
const NO_LIMIT_BYTES = 2 ** 60;

/** The address that serve listens on. */
export async function checkPort(probe: Probe, { host, port }: Config): Promise<Check> {
  const address = `${host.includes(':') ? `[${host}]` : host}:${port}`;
  const code = await probe.listen(host, port);
  if (code === null) return ok('port', `${address} is free`);
  const why: Readonly<Record<string, string>> = {
    EADDRINUSE: 'another process listens there',
    EACCES: 'this user may not listen there',
    EADDRNOTAVAIL: 'it is no address of this host',
  };
  const mend = code === 'EADDRNOTAVAIL' ? 'millrace serve --host 0.0.0.0' : 'millrace serve --port 0';
  return fault('port', 'problem', `${address}: ${why[code] ?? code}`, 'serve cannot start', mend);
}

/** Soft limit of a row of /proc/self/limits: a number, Infinity, or null where there is no such file. */
function softLimit(probe: Probe, row: string): number | null {
  const text = probe.readText('/proc/self/limits');
  const line = text?.split('\n').find(entry => entry.startsWith(row));
  const word = line?.slice(row.length).trim().split(/\s+/, 1)[0];
  if (word === undefined) return null;
  return word === 'unlimited' ? Number.POSITIVE_INFINITY : Number(word);
}

/** The limit of open files against the connections that the limits allow. */
export function checkFiles(probe: Probe, { limits }: Config): Check {
  const files = softLimit(probe, 'Max open files');
  if (files === null) return ok('files', 'no /proc here: the limit of open files is not known');
  const wanted = limits.requestsMax * FILES_PER_REQUEST + FILES_BESIDE;
  const found = `${files} open files; ${limits.requestsMax} requests in flight need ${wanted}`;
  if (files >= wanted) return ok('files', found);
  const requests = Math.max(0, Math.floor((files - FILES_BESIDE) / FILES_PER_REQUEST));
  return fault(
    'files',
    'warning',
    found,
    `connections fail above about ${requests} requests in flight`,
    `ulimit -n ${wanted} (systemd: LimitNOFILE=${wanted})`,
  );
}

/** The memory that may be pinned for transfers. */
export function checkLockedMemory(probe: Probe): Check {
  const bytes = softLimit(probe, 'Max locked memory');
  if (bytes === null) return ok('memlock', 'no /proc here: the limit of locked memory is not known');
  if (bytes === Number.POSITIVE_INFINITY) return ok('memlock', 'unlimited');
  return fault(
    'memlock',
    'absent',
    `${shownBytes(bytes)} may be locked`,
    'nothing for serving; RDMA and GPU transfers of KV blocks pin more than that',
    'ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)',
  );
}

/**
 * The value of a controller file of this process's cgroup, in version 2 or 1. Inside a container the path of
 * /proc/self/cgroup may not exist below /sys, and the root of the mount is then the container's own.
 */
function readCgroup(probe: Probe, controller: string, v2File: string, v1File: string): string | null {
  const lines = (probe.readText('/proc/self/cgroup') ?? '').split('\n').map(line => line.split(':'));
  const v2Path = lines.find(([id]) => id === '0')?.[2] ?? '/';
  const v1Path = lines.find(([, names]) => names?.split(',').includes(controller))?.[2] ?? '/';
  for (const path of [
    `/sys/fs/cgroup${v2Path}/${v2File}`,
    `/sys/fs/cgroup/${v2File}`,
    `/sys/fs/cgroup/${controller}${v1Path}/${v1File}`,
    `/sys/fs/cgroup/${controller}/${v1File}`,
  ]) {
    const text = probe.readText(path.replaceAll('//', '/'));
    if (text !== null) return text.trim();
  }
  return null;
}

/** The memory of the machine or of its cgroup against what the limits allow Millrace to take. */
export function checkMemory(probe: Probe, { limits, poolThreads }: Config): Check {
  const limit = Number(readCgroup(probe, 'memory', 'memory.max', 'memory.limit_in_bytes') ?? Number.NaN);
  const isLimited = limit < Math.min(NO_LIMIT_BYTES, probe.memoryBytes);
  const bytes = isLimited ? limit : probe.memoryBytes;
  const wanted = IDLE_BYTES + limits.retainedBytesMax + poolThreads * limits.poolHeapBytesMax;
  const whose = isLimited ? 'limit of the cgroup' : 'of the machine';
  const found = `${shownBytes(bytes)}, ${whose}; at its limits Millrace takes ${shownBytes(wanted)}`;
  if (bytes >= wanted) return ok('memory', found);
  return fault(
    'memory',
    'warning',
    found,
    'under full load the kernel may kill the process',
    `give it ${shownBytes(wanted)}, or lower --pool-threads and --limit retainedBytesMax=…, poolHeapBytesMax=…`,
  );
}

/** Huge pages, for pools of KV blocks. */
export function checkHugePages(probe: Probe): Check {
  const reserved = Number(/^HugePages_Total:\s+(\d+)/m.exec(probe.readText('/proc/meminfo') ?? '')?.[1] ?? 0);
  const mode = /\[(\w+)\]/.exec(probe.readText('/sys/kernel/mm/transparent_hugepage/enabled') ?? '')?.[1];
  const found = `${reserved} reserved, transparent: ${mode ?? 'not known'}`;
  if (reserved > 0) return ok('hugepages', found);
  return fault(
    'hugepages',
    'absent',
    found,
    'nothing for serving; pools of KV blocks in host memory get small pages',
    'sysctl -w vm.nr_hugepages=1024',
  );
}

/** CPUs that the cgroup's quota pays for; null: no quota. */
function cpuQuota(probe: Probe): number | null {
  const [quota, period] = (readCgroup(probe, 'cpu', 'cpu.max', 'cpu.cfs_quota_us') ?? 'max').split(' ');
  if (quota === 'max' || Number(quota) <= 0) return null;
  const length = period ?? readCgroup(probe, 'cpu', 'cpu.max', 'cpu.cfs_period_us') ?? '100000';
  return Number(quota) / Number(length);
}

/** CPUs, and those that a quota pays for, against the threads. */
export function checkCpus(probe: Probe, { poolThreads, socketThreads }: Config): Check {
  const quota = cpuQuota(probe);
  const usable = Math.min(probe.cpus, quota ?? probe.cpus);
  const said = quota === null ? '' : `, of which the cgroup pays for ${Number(quota.toFixed(1))}`;
  const found = `${probe.cpus} CPUs${said}; threads: ${socketThreads} socket, ${poolThreads} pool`;
  if (usable >= socketThreads + poolThreads) return ok('cpus', found);
  const fitting = Math.max(1, Math.floor(usable) - socketThreads);
  if (fitting >= poolThreads) {
    return fault(
      'cpus',
      'warning',
      found,
      'the threads take turns on a core: latency under load',
      'give it 2 CPUs',
    );
  }
  return fault(
    'cpus',
    'warning',
    found,
    'more threads than CPUs: the kernel stops them in turn, which shows as latency',
    `millrace serve --pool-threads ${fitting}`,
  );
}

/** The file system through which processes of one host share memory. */
export function checkSharedMemory(probe: Probe): Check {
  const bytes = probe.fileSystemBytes('/dev/shm');
  if (bytes !== null && bytes >= GIB) return ok('shm', `/dev/shm, ${shownBytes(bytes)}`);
  return fault(
    'shm',
    'absent',
    bytes === null ? 'no /dev/shm' : `/dev/shm has only ${shownBytes(bytes)}`,
    'nothing for serving; workers of this host cannot share KV blocks through memory',
    'docker run --shm-size=8g (a host: mount -o remount,size=8g /dev/shm)',
  );
}
