/** An error of a mock engine's surface, before it has the envelope of an engine. */

/** Thrown while a request is read; becomes the whole answer. `param` names the field at fault. */
export class HttpError extends Error {
  readonly status: number;
  readonly param: string | null;

  constructor(status: number, message: string, param: string | null = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}
