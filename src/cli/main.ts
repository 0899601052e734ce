#!/usr/bin/env node
/** The `millrace` binary: finds the subcommand, runs it, and turns bad usage into one readable line. */
import { ConfigError, MillraceError } from '../errors.js';
import { nearestName } from '../runtime/nearest-name.js';
import type { Command } from './command.js';

/** Loaded when asked for: a command starts without what the others need. */
const COMMANDS: Readonly<Record<string, () => Promise<{ command: Command }>>> = {
  serve: () => import('./serve.js'),
  worker: () => import('./worker.js'),
  mock: () => import('./mock.js'),
  replay: () => import('./replay.js'),
  kv: () => import('./kv.js'),
  doctor: () => import('./doctor.js'),
};

async function help(): Promise<string> {
  const commands = await Promise.all(Object.values(COMMANDS).map(load => load()));
  const lines = commands.map(({ command }) => `  ${command.name.padEnd(10)} ${command.summary}`);
  return `millrace: one OpenAI-compatible service over a fleet of LLM inference workers

Usage: millrace <command> [flags]

Commands:
${lines.join('\n')}

millrace <command> --help explains the flags of a command.
`;
}

async function main(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv;
  if (name === undefined || name === '--help' || name === 'help') {
    process.stdout.write(await help());
    return name === undefined ? 2 : 0;
  }
  if (!Object.hasOwn(COMMANDS, name)) {
    const near = nearestName(name, Object.keys(COMMANDS));
    process.stderr.write(`millrace: there is no command "${name}"; did you mean "${near}"?\n`);
    return 2;
  }
  const { command } = await COMMANDS[name]!();
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
    process.exitCode = error instanceof ConfigError ? 2 : 1;
  },
);
