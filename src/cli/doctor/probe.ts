/**
 * What `millrace doctor` may ask of the machine, as one interface: the checks touch nothing else, so that a test can
 * take any part of a machine away. `systemProbe` is the real one; it changes nothing and every wait in it has a deadline.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statfsSync } from 'node:fs';
import { createServer } from 'node:net';
import { availableParallelism, totalmem } from 'node:os';
import { fileURLToPath } from 'node:url';
import { type AddonStatus, addonStatus } from '../../runtime/addon.js';

const RUN_DEADLINE_MS = 2000;
/** Longest text that is read of a file of the system. */
const TEXT_CHARACTERS_MAX = 262_144;

/** The machine as the checks see it. */
export interface Probe {
  /** `process.versions.node`. */
  readonly nodeVersion: string;
  /** `process.platform` and `process.arch`. */
  readonly platform: string;
  readonly arch: string;
  readonly addon: AddonStatus;
  /** Folder of this package. */
  readonly packageFolder: string;
  /** CPUs that the process may run on, without regard to quotas. */
  readonly cpus: number;
  /** Memory of the machine in bytes. */
  readonly memoryBytes: number;
  /** Text of a file; null when it cannot be read. */
  readText(path: string): string | null;
  exists(path: string): boolean;
  /** Names in a folder; none when it cannot be read. */
  list(folder: string): readonly string[];
  /** Standard output of a program; null when it is not there, fails or takes longer than 2 s. */
  run(program: string, args: readonly string[]): string | null;
  /** Loads a module: null, or why it does not load. */
  load(module: string): Promise<string | null>;
  /** Listens on an address and stops again: null, or the system's code for why not. */
  listen(host: string, port: number): Promise<string | null>;
  /** Size of the file system at a path in bytes; null when there is none. */
  fileSystemBytes(path: string): number | null;
}

function tryListen(host: string, port: number): Promise<string | null> {
  return new Promise(resolve => {
    const server = createServer();
    server.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    server.listen({ host, port, exclusive: true }, () => server.close(() => resolve(null)));
  });
}

/** What `read` gives, or null when it throws: what cannot be read is not there for the checks. */
function orNull<T>(read: () => T): T | null {
  try {
    return read();
  } catch {
    return null;
  }
}

/** The machine that this process runs on. */
export function systemProbe(): Probe {
  return {
    nodeVersion: process.versions.node,
    platform: process.platform,
    arch: process.arch,
    addon: addonStatus(),
    packageFolder: fileURLToPath(new URL('../../../', import.meta.url)),
    cpus: availableParallelism(),
    memoryBytes: totalmem(),
    readText: path => orNull(() => readFileSync(path, 'utf8').slice(0, TEXT_CHARACTERS_MAX)),
    exists: existsSync,
    list: folder => orNull(() => readdirSync(folder)) ?? [],
    run(program, args) {
      const result = spawnSync(program, args, { encoding: 'utf8', timeout: RUN_DEADLINE_MS });
      return result.status === 0 ? result.stdout : null;
    },
    async load(module) {
      try {
        await import(module);
        return null;
      } catch (error) {
        return (error instanceof Error ? error.message : String(error)).split('\n', 1)[0]!;
      }
    },
    listen: tryListen,
    fileSystemBytes: path =>
      orNull(() => {
        const { bsize, blocks } = statfsSync(path);
        return bsize * blocks;
      }),
  };
}
