/**
 * What every bench shares: strict flags, percentiles, the facts of the machine and the commit, a progress bar, and the
 * result. With `--json` stdout is exactly one JSON object and all else goes to stderr; without it stdout is a table for people.
 * No bench state lives here, and nothing here runs inside a timed window.
 */
import { execFileSync } from 'node:child_process';
import os from 'node:os';
import { fileURLToPath } from 'node:url';

/** Wrong flags: the message names the flag, the allowed range and, for an unknown name, the nearest valid one. */
export class FlagError extends Error {}

/**
 * @typedef {object} Flag
 * @property {'boolean' | 'number' | 'string' | 'list'} type  A list is comma-separated.
 * @property {boolean | number | string | string[] | number[] | undefined} [default]  Absent: false for a boolean, undefined for the others.
 * @property {string} help  One line for `--help`; it names the unit.
 * @property {number} [min]  Smallest value of a number, or of each number in a list.
 * @property {number} [max]  Largest value, likewise.
 * @property {boolean} [integer]  Numbers must be whole.
 * @property {readonly string[]} [choices]  The only values of a string, or of each entry of a list.
 * @property {boolean} [numeric]  A list holds numbers.
 *
 * @typedef {object} FlagSpec
 * @property {string} usage  The command, e.g. `node bench/ring.js [flags]`.
 * @property {string} summary  One or two sentences: what is measured.
 * @property {Record<string, Flag>} flags  Keyed by the long name without dashes, kebab-case.
 * @property {readonly string[]} examples  Complete command lines.
 */

/**
 * The p-th percentile by the nearest-rank method: the smallest value with at least p % of the values at or below it.
 * @param {ArrayLike<number>} values  Any order; not changed.
 * @param {number} p  0 to 100.
 * @returns {number} NaN for no values.
 */
export function percentile(values, p) {
  if (!(p >= 0 && p <= 100)) throw new RangeError(`percentile p must be 0 to 100, got ${p}`);
  if (values.length === 0) return Number.NaN;
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.max(0, Math.ceil((p * sorted.length) / 100) - 1)];
}

/**
 * The middle value, or the mean of the two middle ones.
 * @param {ArrayLike<number>} values  Any order; not changed.
 * @returns {number} NaN for no values.
 */
export function median(values) {
  if (values.length === 0) return Number.NaN;
  const sorted = Float64Array.from(values).sort();
  const upper = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[upper] : (sorted[upper - 1] + sorted[upper]) / 2;
}

/** Field by field the median. @param {Array<Record<string, number>>} windows  All with the same fields. */
export function medians(windows) {
  return Object.fromEntries(
    Object.keys(windows[0]).map(key => [key, median(windows.map(window => window[key]))]),
  );
}

/** The facts of this machine that a figure depends on. */
export function machine() {
  return {
    cpu: os.cpus()[0]?.model.trim() ?? 'unknown',
    cores: os.availableParallelism(),
    memoryBytes: os.totalmem(),
    node: process.version,
    kernel: `${os.type()} ${os.release()} ${os.arch()}`,
    loadAverage1m: os.loadavg()[0],
  };
}

/** The short git hash of this checkout, with `-dirty` when files differ from it; `unknown` outside a checkout. */
export function commit() {
  const cwd = fileURLToPath(new URL('../..', import.meta.url));
  const git = (/** @type {string[]} */ ...args) =>
    execFileSync('git', args, {
      cwd,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: 10_000,
    });
  try {
    const hash = git('rev-parse', '--short', 'HEAD').trim();
    return git('status', '--porcelain').trim() === '' ? hash : `${hash}-dirty`;
  } catch {
    return 'unknown'; // an installed package has no .git, and a machine may have no git
  }
}

const BAR_CELLS = 30;

/**
 * Progress of something that takes over two seconds, on stderr: a bar on a terminal, else one plain line per step.
 * @param {string} label
 * @param {number} total  Steps until done.
 * @returns {{ step(note?: string): void, done(): void }}
 */
export function progress(label, total) {
  const started = performance.now();
  let finished = 0;
  const draw = (/** @type {string} */ note) => {
    const seconds = `${((performance.now() - started) / 1000).toFixed(0)} s`;
    if (!process.stderr.isTTY) return `${label}: ${finished}/${total} ${seconds}${note && ` ${note}`}\n`;
    const filled = Math.round((BAR_CELLS * Math.min(finished, total)) / Math.max(total, 1));
    const bar = '#'.repeat(filled).padEnd(BAR_CELLS, '.');
    return `\r\x1b[K${label} [${bar}] ${finished}/${total} ${seconds}${note && ` ${note}`}`;
  };
  if (process.stderr.isTTY) process.stderr.write(draw(''));
  return {
    step(note = '') {
      finished += 1;
      process.stderr.write(draw(note));
    },
    done() {
      if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
    },
  };
}

/** @param {unknown} value */
function cell(value) {
  if (typeof value !== 'number') return value === undefined || value === null ? '-' : String(value);
  if (!Number.isFinite(value)) return '-';
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString('en-US');
  return Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(3);
}

/**
 * Prints a result on stdout and nothing else there. Set `process.exitCode` afterwards instead of calling `exit()`, which
 * could cut a piped result short.
 * @param {object} result  The whole result, JSON-serialisable.
 * @param {{ json: boolean, table: ReadonlyArray<Record<string, unknown>> }} options  Rows of the table for people; the
 *   columns are the keys of all rows in the order of their first use.
 */
export function printResult(result, { json, table }) {
  if (json) {
    process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
    return;
  }
  const columns = [...new Set(table.flatMap(row => Object.keys(row)))];
  const lines = [columns, ...table.map(row => columns.map(column => cell(row[column])))];
  const widths = columns.map((_, i) => Math.max(...lines.map(line => line[i].length)));
  const numeric = columns.map(column => table.some(row => typeof row[column] === 'number'));
  for (const line of lines) {
    const padded = line.map((text, i) => (numeric[i] ? text.padStart(widths[i]) : text.padEnd(widths[i])));
    process.stdout.write(`${padded.join('  ').trimEnd()}\n`);
  }
}

/**
 * Reads flags strictly: `--name value`, `--name=value`, and a bare `--name` for a boolean. Pure.
 * @param {FlagSpec} spec
 * @param {readonly string[]} argv  Without node and script.
 * @returns {Record<string, any>} Values by camelCase name; `help: true` when `--help` or `-h` was given.
 * @throws {FlagError}
 */
export function readFlags(spec, argv) {
  /** @type {Record<string, any>} */
  const values = { help: false };
  for (const [name, flag] of Object.entries(spec.flags)) {
    values[camel(name)] = flag.default ?? (flag.type === 'boolean' ? false : undefined);
  }
  for (let i = 0; i < argv.length; i += 1) {
    const arg = argv[i];
    if (arg === '--help' || arg === '-h') return { ...values, help: true };
    if (!arg.startsWith('--')) throw new FlagError(`unexpected argument "${arg}": flags begin with --`);
    const equals = arg.indexOf('=');
    const name = equals < 0 ? arg.slice(2) : arg.slice(2, equals);
    const flag = Object.hasOwn(spec.flags, name) ? spec.flags[name] : undefined;
    if (flag === undefined) {
      const known = [...Object.keys(spec.flags), 'help'];
      throw new FlagError(`unknown flag --${name}; did you mean --${nearest(name, known)}?`);
    }
    if (flag.type === 'boolean') {
      if (equals >= 0) throw new FlagError(`--${name} takes no value`);
      values[camel(name)] = true;
      continue;
    }
    if (equals < 0) i += 1;
    const text = equals < 0 ? argv[i] : arg.slice(equals + 1);
    if (text === undefined || text === '') throw new FlagError(`--${name} needs a value`);
    const parts = flag.type === 'list' ? text.split(',') : [text];
    const parsed = parts.map(part => parseOne(name, flag, part));
    values[camel(name)] = flag.type === 'list' ? parsed : parsed[0];
  }
  return values;
}

/**
 * `readFlags` for a command line: prints the help to stdout and exits 0, or prints a wrong flag to stderr and exits 2.
 * @param {FlagSpec} spec
 * @param {readonly string[]} [argv]
 * @returns {Record<string, any>}
 */
export function parseFlags(spec, argv = process.argv.slice(2)) {
  try {
    const values = readFlags(spec, argv);
    if (!values.help) return values;
    process.stdout.write(helpText(spec));
    process.exit(0);
  } catch (error) {
    if (!(error instanceof FlagError)) throw error;
    process.stderr.write(`${error.message}\nTry: ${spec.usage.split(' [')[0]} --help\n`);
    process.exit(2);
  }
}

/** @param {string} name @param {Flag} flag @param {string} text */
function parseOne(name, flag, text) {
  if (flag.choices && !flag.choices.includes(text)) {
    throw new FlagError(
      `--${name} must be one of ${flag.choices.join(', ')}; did you mean ${nearest(text, flag.choices)}?`,
    );
  }
  if (flag.type !== 'number' && !flag.numeric) return text;
  const value = Number(text);
  const { min = Number.MIN_SAFE_INTEGER, max = Number.MAX_SAFE_INTEGER } = flag;
  const valid =
    text.trim() !== '' && value >= min && value <= max && (!flag.integer || Number.isInteger(value));
  if (!valid) {
    throw new FlagError(
      `--${name} must be ${flag.integer ? 'a whole number' : 'a number'} from ${min} to ${max}, got "${text}"`,
    );
  }
  return value;
}

/** @param {FlagSpec} spec */
function helpText(spec) {
  const rows = Object.entries(spec.flags).map(([name, flag]) => {
    const left = flag.type === 'boolean' ? `--${name}` : `--${name} <${flag.type}>`;
    const preset = flag.default === undefined ? '' : ` (default ${String(flag.default)})`;
    const choices = flag.choices ? `: ${flag.choices.join(', ')}` : '';
    return [left, `${flag.help}${choices}${preset}`];
  });
  rows.push(['--help', 'this text']);
  const width = Math.max(...rows.map(([left]) => left.length));
  const flags = rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`);
  const examples = spec.examples.map(example => `  ${example}`);
  return [
    `Usage: ${spec.usage}`,
    '',
    spec.summary,
    '',
    'Flags',
    ...flags,
    '',
    'Examples',
    ...examples,
    '',
  ].join('\n');
}

/** @param {string} name */
function camel(name) {
  return name.replace(/-([a-z0-9])/g, (_, letter) => letter.toUpperCase());
}

/** The candidate with the smallest edit distance. @param {string} word @param {readonly string[]} candidates */
function nearest(word, candidates) {
  return candidates.reduce((best, next) =>
    editDistance(word, next) < editDistance(word, best) ? next : best,
  );
}

/** Levenshtein distance. @param {string} a @param {string} b */
function editDistance(a, b) {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const change = row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(change, row[j] + 1, next[j - 1] + 1));
    }
    row = next;
  }
  return row[b.length];
}
