/**
 * Status lines (R7): the reason phrase for every status that Millrace sends, including two that no registry names.
 * Pure; used by both HTTP servers on the socket thread.
 */
import { STATUS_CODES } from 'node:http';

const OWN: Readonly<Record<number, string>> = { 499: 'Client Closed Request', 529: 'Overloaded' };
const lines = new Map<number, string>();

/** Reason phrase of a status, for example 'Not Found'. */
export function reasonPhrase(status: number): string {
  return OWN[status] ?? STATUS_CODES[status] ?? 'Unknown';
}

/** Status and reason phrase, for example '404 Not Found'. */
export function statusLine(status: number): string {
  let line = lines.get(status);
  if (line === undefined) {
    line = `${status} ${reasonPhrase(status)}`;
    lines.set(status, line);
  }
  return line;
}
