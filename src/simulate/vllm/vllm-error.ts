/** Errors of the mock's vLLM surface, in vLLM's envelope: `code` repeats the status, `type` is the name of a class. */

const TYPES: Readonly<Record<number, string>> = {
  400: 'BadRequestError',
  404: 'NotFoundError',
  405: 'MethodNotAllowed',
  408: 'RequestTimeout',
  413: 'BadRequestError',
  500: 'InternalServerError',
};

/** Thrown while a request is read; becomes the whole answer. `param` names the field at fault. */
export class VllmError extends Error {
  readonly status: number;
  readonly param: string | null;

  constructor(status: number, message: string, param: string | null = null) {
    super(message);
    this.status = status;
    this.param = param;
  }

  /** The response body. */
  body(): string {
    const type = TYPES[this.status] ?? 'InternalServerError';
    return JSON.stringify({ error: { message: this.message, type, param: this.param, code: this.status } });
  }
}
