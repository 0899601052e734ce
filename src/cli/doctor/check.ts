/** What one check of `millrace doctor` says. Every check returns this record; the command only prints them. */

/**
 * ok: found. absent: not there, and Millrace serves without it at the cost named. warning: there, but it will hurt
 * under load. problem: `millrace serve` cannot run like this.
 */
export type CheckStatus = 'ok' | 'absent' | 'warning' | 'problem';

/** The answer of one check. */
export interface Check {
  readonly name: string;
  readonly status: CheckStatus;
  /** What is there, or what is missing, with the figures that were looked at. */
  readonly found: string;
  /** What its state costs; null when it is ok. */
  readonly cost: string | null;
  /** The command that mends it; null when it is ok. */
  readonly mend: string | null;
}

/** A check that found what it wants. */
export function ok(name: string, found: string): Check {
  return { name, status: 'ok', found, cost: null, mend: null };
}

/** A check that did not. */
export function fault(
  name: string,
  status: Exclude<CheckStatus, 'ok'>,
  found: string,
  cost: string,
  mend: string,
): Check {
  return { name, status, found, cost, mend };
}

const KIB = 1024;
const UNITS = ['KiB', 'MiB', 'GiB', 'TiB'];

/** Bytes for people: `1.5 GiB`. */
export function shownBytes(bytes: number): string {
  if (bytes < KIB) return `${bytes} bytes`;
  const power = Math.min(UNITS.length, Math.floor(Math.log2(bytes) / 10));
  return `${Number((bytes / KIB ** power).toFixed(1))} ${UNITS[power - 1]}`;
}
