#!/usr/bin/env node
/** The `millrace` binary: finds the subcommand, runs it, and turns bad usage into one readable line. */
import { MillraceError } from '../errors.js';
import { nearestName } from '../runtime/nearest-name.js';
import type { Command } from './command.js';
import { command as doctor } from './doctor.js';
import { command as mock } from './mock.js';
import { command as replay } from './replay.js';
import { command as serve } from './serve.js';

const COMMANDS: readonly Command[] = [serve, mock, replay, doctor];

const HELP = `millrace: one OpenAI-compatible service over a fleet of LLM inference workers

Usage: millrace <command> [flags]

Commands:
${COMMANDS.map(command => `  ${command.name.padEnd(10)} ${command.summary}`).join('\n')}

millrace <command> --help explains the flags of a command.
`;

async function main(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv;
  if (name === undefined || name === '--help' || name === 'help') {
    process.stdout.write(HELP);
    return name === undefined ? 2 : 0;
  }
  const command = COMMANDS.find(entry => entry.name === name);
  if (command === undefined) {
    const near = nearestName(
      name,
      COMMANDS.map(entry => entry.name),
    );
    process.stderr.write(`millrace: there is no command "${name}"; did you mean "${near}"?\n`);
    return 2;
  }
  if (rest.includes('--help')) {
    process.stdout.write(command.help);
    return 0;
  }
  return command.run(rest);
}

main(process.argv.slice(2)).then(
  code => {
    process.exitCode = code;
  },
  (error: unknown) => {
    const text = error instanceof MillraceError ? error.message : ((error as Error).stack ?? String(error));
    process.stderr.write(`millrace: ${text}\n`);
    process.exitCode = error instanceof MillraceError ? 2 : 1;
  },
);
