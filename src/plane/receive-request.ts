/**
 * A request on its way in (R1): checks its headers, collects its body within its limits and says in one code what went
 * wrong. Socket thread; keeps nothing.
 */
import type { ErrorCode, ErrorDetail } from '../errors.js';
import type { RoutingHints } from '../messages/records.js';
import type { AnswerPort } from './answer-port.js';
import type { RequestContext } from './request-context.js';

const JSON_TYPE = /^application\/(?:[\w.+-]+\+)?json\b/i;

/** How it ended; exactly one is called, unless the port is ended first. */
export interface ReceiveEvents {
  onBody(chunks: Uint8Array[], bytes: number, hints: RoutingHints): void;
  fail(code: ErrorCode, message: string, detail?: ErrorDetail): void;
  /** The client has gone. */
  onGone(): void;
}

/** Request headers that planning may look at. */
const ASK_HEADERS = ['x-request-id'] as const;

/** The headers of a request that go into its ASK. */
export function askHeaders(port: Pick<AnswerPort, 'header'>): [string, string][] {
  return ASK_HEADERS.flatMap(name => {
    const value = port.header(name);
    return value === undefined ? [] : [[name, value]];
  });
}

/** Reads the request of `port`; called once, when the headers have come. */
export function receiveRequest(
  port: Pick<AnswerPort, 'header' | 'hints' | 'readBody'>,
  { limits, sessionHeader }: Pick<RequestContext, 'limits' | 'sessionHeader'>,
  events: ReceiveEvents,
): void {
  const { bodyBytesMax, bodyDeadlineMs } = limits;
  if (!JSON_TYPE.test(port.header('content-type') ?? '')) {
    events.fail('MILLRACE_UNSUPPORTED_MEDIA_TYPE', 'content-type must be application/json');
    return;
  }
  const hints = port.hints(sessionHeader);
  if ('param' in hints) {
    events.fail('MILLRACE_INVALID_REQUEST', hints.message, { param: hints.param });
    return;
  }
  port.readBody(
    bodyBytesMax,
    bodyDeadlineMs,
    (chunks, bytes) => events.onBody(chunks, bytes, hints),
    fault => {
      if (fault === 'tooLarge') {
        const message = `the body is longer than ${bodyBytesMax} bytes (bodyBytesMax)`;
        events.fail('MILLRACE_BODY_TOO_LARGE', message);
      } else if (fault === 'timeout') {
        events.fail('MILLRACE_BODY_TIMEOUT', `the body did not arrive within ${bodyDeadlineMs} ms`);
      } else if (fault === 'consumed') {
        const message = 'the host read the request body before Millrace and did not keep it';
        events.fail('MILLRACE_INTERNAL', message);
      } else events.onGone();
    },
  );
}
