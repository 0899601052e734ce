// Promise: an engine that goes on with a choice it has finished, or names ids that cannot be, changes no answer: each choice
// finishes once, with its text.
import t from 'tap';
import { DONE, textFrame, usageFrame } from '../fake-engine.js';
import {
  COMPLETIONS,
  errorOf,
  FAKE_MODEL,
  jsonOf,
  type PlaneFixture,
  startPlane,
  streamedText,
  TOKENIZER,
} from '../plane-fixture.js';

const ask = { model: FAKE_MODEL, prompt: 'x', max_tokens: 8 };
const [HELLO, WORLD] = [9906, 1917];
const FIRST = textFrame('Hello', [HELLO]);
const LAST = textFrame(' world', [WORLD], 'length');
const END = usageFrame(1, 2) + DONE;
/** What an engine may say of a choice that it has finished. */
const AFTER_THE_FINISH = [
  ['tokens', textFrame(' and more', [323, 810])],
  ['a second finish', textFrame('', [], 'stop')],
  ['tokens and a second finish', textFrame(' and more', [323, 810], 'stop')],
  ['nothing', textFrame('')],
] as const;

/** Streamed and unary. */
async function expectHelloWorld(t: Parameters<typeof startPlane>[0], plane: PlaneFixture): Promise<void> {
  for (const stream of [true, false]) {
    const reply = await plane.post(COMPLETIONS, { ...ask, stream });
    t.equal(reply.status, 200, reply.text);
    const [text, frames] = stream
      ? [streamedText(reply), reply.frames]
      : [jsonOf(reply).choices[0].text, [jsonOf(reply)]];
    t.equal(text, 'Hello world');
    const finishes = frames.flatMap(({ choices = [] }) => choices).filter(one => one.finish_reason);
    t.match(finishes, [{ finish_reason: 'length' }]);
    t.equal(finishes.length, 1, 'finished once');
    if (stream) t.ok(reply.done && !reply.broken);
  }
}

for (const tokenizer of [TOKENIZER, null]) {
  t.test(tokenizer === null ? 'relayIds' : 'token', async t => {
    const plane = await startPlane(t, { fakes: [{}], tokenizer, limits: { breakerFailuresMax: 1000 } });
    const fake = plane.fakes[0]!;
    for (const [name, extra] of AFTER_THE_FINISH)
      await plane.step(t, `after the finish: ${name}`, async t => {
        // In one piece and in two: what comes with the finish is read before the answer can end.
        for (const parts of [[FIRST + LAST + extra + END], [FIRST + LAST, extra + END]]) {
          fake.script = call => {
            call.stream();
            for (const part of parts) call.send(part);
            call.end();
          };
          await expectHelloWorld(t, plane);
        }
      });

    await plane.step(
      t,
      'an id that no vocabulary has is a token without text, as engines pad theirs',
      async t => {
        fake.script = call =>
          call
            .stream()
            .send(FIRST + textFrame('', [0xffff_ffff]) + LAST + END)
            .end();
        await expectHelloWorld(t, plane);
      },
    );

    for (const [name, frame] of [
      ['an id of more than 32 bits', textFrame('Hello', [2 ** 32])],
      ['an id below 0', textFrame('Hello', [-1])],
      ['truncated JSON', `${FIRST.slice(0, -20)}\n\n`],
    ] as const)
      await plane.step(t, name, async t => {
        fake.script = call => call.stream().send(frame).end();
        for (const stream of [true, false])
          t.match(errorOf(await plane.post(COMPLETIONS, { ...ask, stream })), {
            status: 502,
            code: 'MILLRACE_WORKER_PROTOCOL',
          });
      });

    if (tokenizer === null) return;
    await plane.step(t, 'ids of a prompt that the vocabulary does not have are refused', async t => {
      const before = fake.calls.length;
      const reply = await plane.post(COMPLETIONS, { ...ask, prompt: [1, 900_000] });
      t.match(errorOf(reply), { status: 400, code: 'MILLRACE_INVALID_REQUEST', param: 'prompt' });
      t.match(reply.text, /the token id 900000; allowed: 0 to \d+/);
      t.equal(fake.calls.length, before);
    });
  });
}
