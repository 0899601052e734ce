/**
 * Checks of raw values of settings (texts of flags and of the environment, values of YAML): each gives the typed value or
 * throws a ConfigError that names the source and what is allowed. Pure but for `createRequire`, which finds packages.
 */
import { createRequire } from 'node:module';
import { isAbsolute, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ConfigError } from './errors.js';
import { LIMITS, type LimitName } from './limits.js';
import { WORKER_ROLES, type WorkerRole } from './messages/disagg.js';
import { nearestName } from './runtime/nearest-name.js';

/** How a setting was given, for error messages: `--port`, `MILLRACE_PORT`, `port in millrace.yaml`. */
export type Source = string;
const EXTENSIONS_MAX = 64;

const shown = (raw: unknown): string => JSON.stringify(raw) ?? String(raw);

/** An integer in a range. */
export function integer(min: number, max: number, unit = '') {
  return (raw: unknown, source: Source): number => {
    const value = typeof raw === 'string' && /^[+-]?\d+$/.test(raw.trim()) ? Number(raw) : raw;
    if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
      throw new ConfigError(
        `${source} is ${shown(raw)}; allowed: an integer from ${min} to ${max}${unit && ` ${unit}`}`,
      );
    }
    return value;
  };
}

/** One of a closed set of names. */
export function oneOf(names: readonly string[]) {
  return (raw: unknown, source: Source): string => {
    if (typeof raw === 'string' && names.includes(raw)) return raw;
    const near = typeof raw === 'string' ? nearestName(raw, names) : null;
    throw new ConfigError(
      `${source} is ${shown(raw)}; allowed: ${names.join(', ')}${near === null ? '' : ` (did you mean ${near}?)`}`,
    );
  };
}

/** A non-empty text. */
export function text(raw: unknown, source: Source): string {
  if (typeof raw === 'string' && raw.length > 0 && raw.length <= 4096) return raw;
  throw new ConfigError(`${source} is ${shown(raw)}; allowed: a text of 1 to 4096 characters`);
}

/** A secret: never part of a message. */
export function token(raw: unknown, source: Source): string {
  if (typeof raw === 'string' && /^[\x21-\x7e]{16,4096}$/.test(raw)) return raw;
  throw new ConfigError(`${source} is not shown; allowed: 16 to 4096 visible ASCII characters, no blanks`);
}

/** The name of a header, or '' for none. */
export function headerName(raw: unknown, source: Source): string {
  if (typeof raw === 'string' && /^[\w!#$%&'*+.^`|~-]{0,64}$/.test(raw)) return raw.toLowerCase();
  throw new ConfigError(
    `${source} is ${shown(raw)}; allowed: the name of a header (1 to 64 letters, digits, -), or '' for none`,
  );
}

/** A path, made absolute. */
export function path(raw: unknown, source: Source): string {
  return resolve(text(raw, source));
}

/**
 * Modules as paths: a path relative to `folder`, a file: URL, or the name of a package. Throws ConfigError. That they are
 * there and what they export is seen when they are loaded.
 */
export function modulePaths(raw: unknown, source: Source, folder: string): readonly string[] {
  const given = Array.isArray(raw) ? raw : [raw];
  if (given.length > EXTENSIONS_MAX)
    throw new ConfigError(`${source} has ${given.length} entries; allowed: at most ${EXTENSIONS_MAX}`);
  const paths = given.map(entry => modulePath(text(entry, source), source, folder));
  const double = paths.find((one, index) => paths.indexOf(one) !== index);
  if (double !== undefined) throw new ConfigError(`${source} names ${double} twice`);
  return Object.freeze(paths);
}

function modulePath(given: string, source: Source, folder: string): string {
  if (given.startsWith('file:')) {
    try {
      return fileURLToPath(given);
    } catch (cause) {
      throw new ConfigError(`${source} is ${shown(given)}, which is not the URL of a file here`, { cause });
    }
  }
  if (/^\.{0,2}\//.test(given) || isAbsolute(given)) return resolve(folder, given);
  try {
    return createRequire(join(folder, 'config')).resolve(given);
  } catch {
    // A package that only `import` can load is found from where this one is installed.
  }
  try {
    return fileURLToPath(import.meta.resolve(given));
  } catch (cause) {
    const hint = 'a path begins with ./, ../ or /';
    throw new ConfigError(
      `${source} is ${shown(given)}, and there is no such package from ${folder} (${hint})`,
      {
        cause,
      },
    );
  }
}

/** `unlimited` or a positive factor of the modelled speed. */
export function speed(raw: unknown, source: Source): number | 'unlimited' {
  if (raw === 'unlimited') return raw;
  const value = typeof raw === 'string' ? Number(raw) : raw;
  if (typeof value === 'number' && value >= 0.001 && value <= 1e6) return value;
  throw new ConfigError(`${source} is ${shown(raw)}; allowed: a factor from 0.001 to 1000000, or unlimited`);
}

/** Mock engines to start: a number, or one for each role, with which they get a KV connector. */
export type MockWorkers = number | Readonly<Record<WorkerRole, number>>;

/** A number of mock engines, or one for each role. */
export function mockWorkers(raw: unknown, source: Source): MockWorkers {
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw)) return integer(1, 64)(raw, source);
  const other = Object.keys(raw).find(key => !WORKER_ROLES.some(role => role === key));
  if (other !== undefined)
    throw new ConfigError(`${source} has "${other}"; allowed: ${WORKER_ROLES.join(', ')}`);
  const given = raw as Partial<Record<WorkerRole, unknown>>;
  const count = (role: WorkerRole): number => integer(0, 64)(given[role] ?? 0, `${source}: ${role}`);
  const counts = { prefill: count('prefill'), decode: count('decode'), both: count('both') };
  if (counts.decode + counts.both === 0)
    throw new ConfigError(`${source} has no worker that answers; give decode or both`);
  return counts;
}

/** Limits by name: `name=value` texts, or a YAML map. */
export function limitValues(raw: unknown, source: Source): Partial<Record<LimitName, number>> {
  const entries: [string, unknown][] =
    typeof raw === 'object' && raw !== null && !Array.isArray(raw)
      ? Object.entries(raw)
      : (Array.isArray(raw) ? raw : [raw]).map(entry => {
          const [name, ...rest] = String(entry).split('=');
          return [name!.trim(), rest.join('=')];
        });
  const values: Partial<Record<LimitName, number>> = {};
  for (const [name, value] of entries) {
    if (!Object.hasOwn(LIMITS, name)) {
      const near = nearestName(name, Object.keys(LIMITS));
      throw new ConfigError(`${source}: there is no limit ${shown(name)}; did you mean ${near}?`);
    }
    const entry = LIMITS[name as LimitName];
    values[name as LimitName] = integer(entry.min, entry.max, entry.unit)(value, `${source}: ${name}`);
  }
  return values;
}
