/**
 * `millrace kv info`: by which ways KV blocks can move from here, and what of the machine decides how fast. Changes nothing
 * and starts no transfer; what is missing is part of the answer. Exit code 0 whenever it can answer.
 */

import { ConfigError } from '../errors.js';
import { probeTransports, type TransportInfo, type UcxInfo, ucxInfo } from '../transfer/index.js';
import { type Command, readFlags } from './command.js';
import { checkHugePages, checkLockedMemory } from './doctor/machine-checks.js';
import { type Probe, systemProbe } from './doctor/probe.js';

const HELP = `millrace kv info: the ways by which KV blocks can move from this machine

Usage: millrace kv info [flags]

Every transport of the transfer engine with what limits it; the huge pages, locked memory and permissions that they
depend on; UCX with its transports and devices (needs the optional package koffi: npm install koffi).

  --config   also the settings of UCX that are in force
  --json     one JSON object: {transports: [{name, available, reason, memoryKinds, sameHostOnly, oneSided}],
             machine: {hugePages, transparentHugePages, lockedMemory, ptraceScope}, ucx: {available, reason, version,
             transports: [{name, device, oneSided}], oneSided, config}}

Examples:
  millrace kv info
  millrace kv info --config
  UCX_TLS=rc,ud,tcp millrace kv info --json
`;

/** What of the machine transports depend on, in words. */
interface MachineFacts {
  /** Reserved huge pages and the mode of transparent ones. */
  readonly hugePages: string;
  /** Mode of transparent huge pages of shared memory, which pools of the engine are made of; null: not known. */
  readonly transparentHugePages: string | null;
  readonly lockedMemory: string;
  /** kernel.yama.ptrace_scope: from 1 on, cma reaches only processes that allow it; null: not restricted. */
  readonly ptraceScope: number | null;
}

/** The whole answer of `millrace kv info`. */
export interface KvInfo {
  readonly transports: readonly TransportInfo[];
  /** Why there are no transports; empty when there are. */
  readonly reason: string;
  readonly machine: MachineFacts;
  readonly ucx: UcxInfo;
}

function machineFacts(probe: Probe): MachineFacts {
  const shared = probe.readText('/sys/kernel/mm/transparent_hugepage/shmem_enabled') ?? '';
  const scope = probe.readText('/proc/sys/kernel/yama/ptrace_scope');
  return {
    hugePages: checkHugePages(probe).found,
    transparentHugePages: /\[(\w+)\]/.exec(shared)?.[1] ?? null,
    lockedMemory: checkLockedMemory(probe).found,
    ptraceScope: scope === null ? null : Number(scope.trim()),
  };
}

/** Asks the machine, the engine and UCX. */
export async function kvInfo(
  probe: Probe,
  transportsOf: () => TransportInfo[],
  ucxOf: () => Promise<UcxInfo>,
): Promise<KvInfo> {
  let transports: TransportInfo[] = [];
  let reason = '';
  try {
    transports = transportsOf();
  } catch (error) {
    reason = (error as Error).message;
  }
  return { transports, reason, machine: machineFacts(probe), ucx: await ucxOf() };
}

/** Columns as wide as their widest cell. */
function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map(row => row[column]!.length)));
  return rows.map(row => `  ${row.map((cell, column) => cell.padEnd(widths[column]!)).join('  ')}`.trimEnd());
}

/** Bit 0 is host memory, bit 1 device memory. */
function memoryNames(kinds: number): string {
  const names = [...((kinds & 1) !== 0 ? ['host'] : []), ...((kinds & 2) !== 0 ? ['device'] : [])];
  return names.length === 0 ? '-' : names.join(', ');
}

function ucxLines(ucx: UcxInfo, showsConfig: boolean): string[] {
  if (!ucx.available) return [`UCX: ${ucx.reason}`];
  const lanes = ucx.oneSided
    ? 'its devices move bytes between hosts by themselves'
    : 'no device here that moves bytes between hosts by itself (rc, dc): tcp does as well';
  const rows = ucx.transports.map(({ name, device, oneSided }) => [
    name,
    device,
    oneSided ? 'one-sided' : '',
  ]);
  const settings = Object.entries(ucx.config).map(([name, value]) => `  ${name}=${value}`);
  return [
    `UCX ${ucx.version}: ${lanes}`,
    ...table([['transport', 'device', ''], ...rows]),
    ...(showsConfig ? ['', 'Settings of UCX', ...settings] : []),
  ];
}

/** The answer as lines for people. */
export function kvReport(info: KvInfo, showsConfig: boolean): string {
  const { transports, machine, ucx } = info;
  const rows = transports.map(({ name, available, memoryKinds, sameHostOnly, oneSided, reason }) => [
    name,
    available ? 'yes' : 'no',
    memoryNames(memoryKinds),
    sameHostOnly ? 'this host' : 'any host',
    oneSided ? 'one-sided' : 'two-sided',
    reason,
  ]);
  const lines = [
    ...(info.reason === ''
      ? table([['transport', 'here', 'memory', 'reaches', 'works', 'limits'], ...rows])
      : [`No transports: ${info.reason}`]),
    '',
    'Machine',
    ...table([
      ['huge pages', machine.hugePages],
      ['of shared memory', `transparent: ${machine.transparentHugePages ?? 'not known'}`],
      ['locked memory', machine.lockedMemory],
      ['ptrace scope', machine.ptraceScope === null ? 'not restricted' : String(machine.ptraceScope)],
    ]),
    '',
    ...ucxLines(ucx, showsConfig),
  ];
  return `${lines.join('\n')}\n`;
}

async function run(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv;
  if (name !== 'info')
    throw new ConfigError(`millrace kv has the subcommand info; got ${name === undefined ? 'none' : name}`);
  const flags = readFlags(rest, { json: 'switch', config: 'switch' });
  const info = await kvInfo(systemProbe(), probeTransports, ucxInfo);
  process.stdout.write(
    flags.json === true ? `${JSON.stringify(info)}\n` : kvReport(info, flags.config === true),
  );
  return 0;
}

/** The `kv` subcommand. */
export const command: Command = {
  name: 'kv',
  summary: 'say by which ways KV blocks can move from here (kv info)',
  help: HELP,
  run,
};
