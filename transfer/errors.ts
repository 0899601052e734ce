/**
 * How a transfer, or a call of the engine, fails: one class and one code per status of the engine (native/transfer/status.h),
 * which never change their meaning. Part of no request of the data plane, so it has no HTTP status; who moves blocks for a
 * request translates it.
 */

/** The statuses below zero, in the order of their numbers from −1 on. */
const CODES = [
  'INVALID',
  'NOT_FOUND',
  'MISMATCH',
  'NOT_ALLOWED',
  'BUSY',
  'FULL',
  'UNSUPPORTED',
  'PEER_LOST',
  'CANCELLED',
  'DEADLINE',
  'CORRUPT',
  'STALE',
  'SYSTEM',
  'CLOSED',
] as const;

/**
 * Why it failed. `INVALID`: an argument outside its range. `NOT_FOUND`: no such pool, peer or lease. `MISMATCH`: two
 * sides that do not fit (version, layout). `NOT_ALLOWED`: the peer may not do this. `BUSY`: in use by a transfer or a
 * lease. `FULL`: too much in flight, try again after a completion. `UNSUPPORTED`: no transport here can do it.
 * `PEER_LOST`: the peer died or was cut off. `CANCELLED`, `DEADLINE`: as asked for. `CORRUPT`: a checksum differs.
 * `STALE`: a block, pool or peer moved on to another generation. `SYSTEM`: the operating system refused. `CLOSED`: the
 * agent is closed.
 */
export type TransferErrorCode = (typeof CODES)[number];

/** What is known besides the code. */
export interface TransferErrorDetail {
  /** The transfer that failed; its bytes are quiet. */
  readonly transferId?: number;
  readonly cause?: unknown;
}

/** Thrown by calls of the engine, and what the promise of a transfer is rejected with. */
export class TransferError extends Error {
  readonly code: TransferErrorCode;
  readonly transferId: number | undefined;

  constructor(code: TransferErrorCode, message: string, detail: TransferErrorDetail = {}) {
    super(message, detail.cause === undefined ? undefined : { cause: detail.cause });
    this.name = 'TransferError';
    this.code = code;
    this.transferId = detail.transferId;
  }
}

/** The code of a status below zero. */
export function codeOf(status: number): TransferErrorCode {
  const code = CODES[-status - 1];
  if (code === undefined)
    throw new RangeError(`the transfer engine answered with the unknown status ${status}`);
  return code;
}

/** Throws INVALID with the field, what was given and what is allowed. */
export function invalid(field: string, given: unknown, allowed: string): never {
  const shown =
    typeof given === 'string'
      ? `'${given.slice(0, 64)}'`
      : typeof given === 'object'
        ? typeof given
        : String(given);
  throw new TransferError('INVALID', `${field} is ${shown}, allowed is ${allowed}`);
}
