/** What a subcommand of `millrace` is, and the flag reading that the subcommands share. */
import { parseArgs } from 'node:util';
import { ConfigError } from '../errors.js';
import { nearestName } from '../runtime/nearest-name.js';

/** One subcommand: `millrace <name> …`. */
export interface Command {
  readonly name: string;
  /** One line for `millrace --help`. */
  readonly summary: string;
  /** The whole text of `millrace <name> --help`, with examples. */
  readonly help: string;
  /** Runs it; resolves with the exit code. Throws ConfigError for bad flags. */
  run(argv: readonly string[]): Promise<number>;
}

/** How a flag is given: with a value, several times with a value, or alone. */
export type FlagKind = 'value' | 'values' | 'switch';

/** What a flag of each kind gives; distributes over a union of kinds. */
type FlagValue<Kind extends FlagKind> = Kind extends 'switch'
  ? boolean
  : Kind extends 'values'
    ? string[]
    : string;

/** The flags that were given, by name. */
export type FlagValues<Flags extends Readonly<Record<string, FlagKind>>> = {
  readonly [Name in keyof Flags]?: FlagValue<Flags[Name]>;
};

/**
 * Reads `--flag value`, `--flag=value` and switches. Returns texts, lists of texts and booleans by flag name.
 * Throws ConfigError that names the nearest valid flag, or the flag whose value is missing.
 */
export function readFlags<Flags extends Readonly<Record<string, FlagKind>>>(
  argv: readonly string[],
  flags: Flags,
): FlagValues<Flags> {
  for (const word of argv) {
    const name = /^--([^=]+)/.exec(word)?.[1];
    if (name === undefined || Object.hasOwn(flags, name)) continue;
    throw new ConfigError(
      `there is no flag --${name}; did you mean --${nearestName(name, Object.keys(flags))}?`,
    );
  }
  try {
    const { values } = parseArgs({
      args: [...argv],
      options: Object.fromEntries(
        Object.entries(flags).map(([name, kind]) => [
          name,
          {
            type: kind === 'switch' ? ('boolean' as const) : ('string' as const),
            multiple: kind === 'values',
          },
        ]),
      ),
      strict: true,
      allowPositionals: false,
    });
    return values as FlagValues<Flags>;
  } catch (cause) {
    // Node explains some of these in several lines.
    throw new ConfigError((cause as Error).message.replaceAll('\n', ' '), { cause });
  }
}
