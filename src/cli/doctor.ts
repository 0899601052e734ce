/**
 * `millrace doctor`: looks at everything that Millrace can use and says for each whether it is there, or what its absence
 * costs and the command that mends it. Changes nothing. Exit code 0 when `millrace serve` can run here, else 1.
 */
import { readFileSync } from 'node:fs';
import { type Config, loadConfig } from '../config.js';
import { TOKENIZER_NAMES } from '../preprocess/tokenizers/load.js';
import { POLICY_NAMES } from '../router/policies/policies.js';
import { type Command, readFlags } from './command.js';
import type { Check } from './doctor/check.js';
import {
  checkCpus,
  checkFiles,
  checkHugePages,
  checkLockedMemory,
  checkMemory,
  checkPort,
  checkSharedMemory,
} from './doctor/machine-checks.js';
import { type Probe, systemProbe } from './doctor/probe.js';
import {
  checkAddon,
  checkCuda,
  checkNats,
  checkNode,
  checkTokenizers,
  checkUcx,
  checkUws,
} from './doctor/software-checks.js';

const HELP = `millrace doctor: what is here, what is not, what that costs and how to mend it

Usage: millrace doctor [flags]

Exit code 0: millrace serve can run here. 1: it cannot; the lines marked "problem" say why.
absent costs what its line says and no more; warning hurts under load.

  --host ADDRESS   address that serve would listen on (127.0.0.1)
  --port PORT      port that serve would listen on (8000)
  --json           one JSON object: {version, canServe, checks: [{name, status, found, cost, mend}]}

MILLRACE_* variables count as for serve. Examples:
  millrace doctor
  millrace doctor --port 9000 --json
`;

/** Every check, in the order in which they are shown. */
export async function examine(probe: Probe, config: Config): Promise<readonly Check[]> {
  return [
    checkNode(probe),
    checkAddon(probe),
    await checkUws(probe),
    await checkTokenizers(probe),
    await checkPort(probe, config),
    checkCpus(probe, config),
    checkMemory(probe, config),
    checkFiles(probe, config),
    checkLockedMemory(probe),
    checkHugePages(probe),
    checkSharedMemory(probe),
    checkCuda(probe),
    checkUcx(probe),
    checkNats(probe),
  ];
}

/** Whether `serve` can run with these findings. */
export function canServe(checks: readonly Check[]): boolean {
  return checks.every(check => check.status !== 'problem');
}

/** The findings as lines for people. */
export function report(version: string, checks: readonly Check[]): string {
  const row = (first: string, second: string, text: string): string =>
    `  ${first.padEnd(8)} ${second.padEnd(11)} ${text}`;
  const lines = [`millrace ${version} doctor`, ''];
  for (const { name, status, found, cost, mend } of checks) {
    lines.push(row(status, name, found));
    if (cost !== null) lines.push(row('', '', `costs: ${cost}`));
    if (mend !== null) lines.push(row('', '', `mend:  ${mend}`));
  }
  const problems = checks.filter(check => check.status === 'problem').map(check => check.name);
  const verdict =
    problems.length === 0
      ? 'millrace serve can run here.'
      : `millrace serve cannot run here: ${problems.join(', ')}.`;
  return `${[...lines, '', verdict].join('\n')}\n`;
}

async function run(argv: readonly string[]): Promise<number> {
  const flags = readFlags(argv, { host: 'value', port: 'value', json: 'switch' });
  const config = loadConfig(
    { policies: POLICY_NAMES, tokenizers: TOKENIZER_NAMES },
    { options: { host: flags.host, port: flags.port }, env: process.env },
  );
  const checks = await examine(systemProbe(), config);
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  const healthy = canServe(checks);
  const said =
    flags.json === true
      ? `${JSON.stringify({ version, canServe: healthy, checks })}\n`
      : report(version, checks);
  process.stdout.write(said);
  return healthy ? 0 : 1;
}

/** The `doctor` subcommand. */
export const command: Command = {
  name: 'doctor',
  summary: 'say what is here, what its absence costs and how to mend it',
  help: HELP,
  run,
};
