/** The public surface of the package. */

export type { ErrorCode, ErrorEnvelope } from './errors.js';
export {
  ConfigError,
  EvictedError,
  InvalidRequestError,
  MillraceError,
  RejectedError,
  WorkerError,
} from './errors.js';
