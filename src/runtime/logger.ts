/** One line per event on a stream, as text for people or JSON for machines. Never holds prompt or completion text. */

/** Lowest level that is written; `silent` writes nothing. */
export type LogLevel = 'debug' | 'info' | 'warn' | 'error' | 'silent';

/** Facts beside the message; undefined ones are left out. */
export type LogFields = Readonly<Record<string, string | number | boolean | null | undefined>>;

/** Writes one line per call, at once. */
export interface Logger {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
}

const RANK: Readonly<Record<LogLevel, number>> = { debug: 0, info: 1, warn: 2, error: 3, silent: 4 };

/** How lines are written. `write` gets whole lines with their line end; `wallMs` gives the time stamp. */
export interface LoggerOptions {
  level: LogLevel;
  format: 'text' | 'json';
  write?: (line: string) => void;
  wallMs?: () => number;
}

/** Builds a logger; `write` defaults to standard error. */
export function createLogger(options: LoggerOptions): Logger {
  const write = options.write ?? (line => process.stderr.write(line));
  const wallMs = options.wallMs ?? Date.now;
  const emit = (level: LogLevel, message: string, fields: LogFields): void => {
    if (RANK[level] < RANK[options.level]) return;
    const time = new Date(wallMs()).toISOString();
    if (options.format === 'json') {
      write(`${JSON.stringify({ time, level, message, ...fields })}\n`);
      return;
    }
    const tail = Object.entries(fields)
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => ` ${name}=${value}`)
      .join('');
    write(`${time} ${level} ${message}${tail}\n`);
  };
  return {
    debug: (message, fields = {}) => emit('debug', message, fields),
    info: (message, fields = {}) => emit('info', message, fields),
    warn: (message, fields = {}) => emit('warn', message, fields),
    error: (message, fields = {}) => emit('error', message, fields),
  };
}
