/** Promise: an engine's refusal reaches the client in OpenAI's terms, and its insides never do. */
import t from 'tap';
import { engineError } from '#millrace/engines/engine-error.js';

const openai = (message: string, param: string | null = null) =>
  JSON.stringify({ error: { message, type: 'BadRequestError', param, code: 400 } });

t.test('what the client did wrong is passed on', t => {
  t.same(engineError(400, openai('top_p must be in (0, 1], got 2', 'top_p')), {
    code: 'MILLRACE_INVALID_REQUEST',
    message: 'top_p must be in (0, 1], got 2',
    httpStatus: 400,
    param: 'top_p',
    retryable: false,
  });
  const flat = JSON.stringify({ object: 'error', message: 'bad n', type: 'BadRequestError', code: 400 });
  t.match(engineError(400, flat), { message: 'bad n', httpStatus: 400 });
  const detail = JSON.stringify({ detail: [{ loc: ['body', 'n'], msg: 'not an integer' }, { msg: 'x' }, 3] });
  t.match(engineError(422, detail), { message: 'n: not an integer; x', httpStatus: 400, retryable: false });
  t.match(engineError(413, '{"detail":"too big"}'), { message: 'too big', httpStatus: 413 });
  const long = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens";
  t.match(engineError(400, openai(long)), {
    code: 'MILLRACE_CONTEXT_LENGTH',
    message: long,
    retryable: false,
  });
  t.equal(engineError(400, openai('x'.repeat(5000))).message.length, 1000);
  t.end();
});

t.test('what another worker may do better is retryable', t => {
  t.match(engineError(404, openai('The model `m` does not exist.')), {
    code: 'MILLRACE_UNKNOWN_MODEL',
    httpStatus: 404,
    retryable: true,
    message: 'The model `m` does not exist.',
  });
  for (const status of [429, 503]) {
    t.match(engineError(status, ''), { code: 'MILLRACE_OVERLOADED', httpStatus: 529, retryable: true });
  }
  for (const status of [500, 502, 504, 401, 403, 200]) {
    t.match(engineError(status, openai('secret')), {
      code: 'MILLRACE_WORKER_FAILED',
      message: `the worker failed with status ${status}`,
      httpStatus: 502,
      retryable: true,
    });
  }
  t.match(engineError(302, ''), { code: 'MILLRACE_WORKER_PROTOCOL', retryable: true });
  t.end();
});

t.test('paths and stacks of the engine are never shown', t => {
  const leaks = [
    'Traceback (most recent call last): ...',
    'File "x.py", line 3',
    'The model `/mnt/models/llama` does not exist.',
    "cannot open '/opt/vllm/config.json'",
  ];
  for (const leak of leaks) {
    for (const status of [400, 404, 422]) {
      t.equal(
        engineError(status, openai(leak)).message,
        `the engine refused the request with status ${status}`,
      );
    }
  }
  t.match(engineError(400, openai('use image/png, a/b or 3/4')), { message: 'use image/png, a/b or 3/4' });
  for (const body of ['', '<html>', '[]', 'null', '{"error":null}', '{"error":{"message":7}}']) {
    t.equal(engineError(400, body).message, 'the engine refused the request with status 400');
  }
  t.end();
});
