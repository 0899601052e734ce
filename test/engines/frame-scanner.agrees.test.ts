// Promise: the native scanner and its twin write the same words for every input, whole, cut and damaged, and on
// well-formed frames those words say what JSON.parse says.
import t from 'tap';
import {
  FRAME,
  FRAME_FLAG,
  FRAME_WORDS,
  SCAN_HEADER,
  SCAN_HEADER_WORDS,
} from '#millrace/engines/frame-descriptor.js';
import { createFrameScanner, type FrameScanner } from '#millrace/engines/frame-scanner.js';
import { addonStatus, loadAddon } from '#millrace/runtime/addon.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { damaged, type FrameSample, frameSample, streamBytes } from './frame-corpus.js';

const seed = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const long = process.env.MILLRACE_TEST_LONG === '1';
const cases = long ? 100_000 : 1500;
const addon = loadAddon();
const twin = createFrameScanner(null);
const decoder = new TextDecoder();

/** Everything that a scan has written, as one string. */
function words(scanner: FrameScanner): string {
  const { table, ids } = scanner;
  const rows = table.subarray(0, SCAN_HEADER_WORDS + table[SCAN_HEADER.frames]! * FRAME_WORDS);
  return `${rows.join()};${ids.subarray(0, table[SCAN_HEADER.ids]!).join()}`;
}

function samples(random: Random): FrameSample[] {
  return Array.from({ length: 1 + randomInteger(random, 4) }, () => frameSample(random));
}

const skipWithoutAddon = addon === null ? { skip: `no addon: ${addonStatus().reason}` } : {};

t.test('native and twin agree', skipWithoutAddon, async t => {
  const native = createFrameScanner(addon);
  const same = (bytes: Uint8Array, from: number, to: number): boolean => {
    native.scan(bytes, from, to);
    twin.scan(bytes, from, to);
    return words(native) === words(twin);
  };
  t.comment(`SEED=${seed}`);

  await t.test('on damaged streams', async t => {
    const random = seededRandom(seed);
    let malformed = 0;
    for (let i = 0; i < cases; i++) {
      const bytes = damaged(random, streamBytes(samples(random)));
      const from = randomInteger(random, 3) === 0 ? randomInteger(random, bytes.length + 1) : 0;
      if (!same(bytes, from, bytes.length)) return t.fail(`case ${i}`, { text: decoder.decode(bytes), from });
      for (let row = 0; row < twin.table[SCAN_HEADER.frames]!; row++) {
        if (twin.table[SCAN_HEADER_WORDS + row * FRAME_WORDS + FRAME.flags]! & FRAME_FLAG.malformed)
          malformed++;
      }
    }
    t.ok(malformed > cases / 10, 'damage was seen');
  });

  await t.test('cut at every byte', async t => {
    const random = seededRandom(seed + 1);
    for (let i = 0; i < (long ? 500 : 15); i++) {
      const bytes = streamBytes(samples(random));
      for (let cut = 0; cut <= bytes.length; cut++) {
        if (!same(bytes, 0, cut) || !same(bytes, cut, bytes.length)) return t.fail(`case ${i} cut ${cut}`);
      }
    }
    t.pass('every cut');
  });

  await t.test('on random bytes of the syntax', async t => {
    const random = seededRandom(seed + 2);
    const alphabet = new TextEncoder().encode(
      'data: {"choices":[{"index":0,"token_ids":[1,2],"text":null}]}\\\n\n\r',
    );
    for (let i = 0; i < cases; i++) {
      const bytes = Uint8Array.from({ length: 200 }, () => alphabet[randomInteger(random, alphabet.length)]!);
      if (!same(bytes, 0, bytes.length)) return t.fail(`case ${i}`, { text: decoder.decode(bytes) });
    }
    t.pass('all');
  });
  native.close();
});

/** What the row says, as values. */
function rowValues(scanner: FrameScanner, bytes: Uint8Array, row: number): Record<string, unknown> {
  const at = SCAN_HEADER_WORDS + row * FRAME_WORDS;
  const word = (name: keyof typeof FRAME): number => scanner.table[at + FRAME[name]]!;
  const value = (start: number, end: number): unknown =>
    start < 0 ? null : JSON.parse(decoder.decode(bytes.subarray(start, end)));
  // A member with its key is an object once there are braces around it.
  const member = (start: keyof typeof FRAME, end: keyof typeof FRAME): unknown =>
    word(start) < 0 ? null : JSON.parse(`{${decoder.decode(bytes.subarray(word(start), word(end)))}}`);
  const first = word('idsFirst');
  return {
    flags: word('flags'),
    index: word('choice'),
    text: value(word('textStart'), word('textEnd')),
    finish: value(word('finishStart'), word('finishEnd')),
    usage: value(word('usageStart'), word('usageEnd')),
    error: value(word('errorStart'), word('errorEnd')),
    ids: first < 0 ? null : Array.from(scanner.ids.subarray(first, first + word('idsCount'))),
    idsText: value(word('tokenIdsStart'), word('tokenIdsEnd')),
    logprobs: value(word('logprobsStart'), word('logprobsEnd')),
    members: [
      member('usageKey', 'usageEnd'),
      member('tokenIdsKey', 'tokenIdsEnd'),
      member('choicePromptIdsStart', 'choicePromptIdsEnd'),
      member('promptIdsStart', 'promptIdsEnd'),
    ],
  };
}

/** The same from JSON.parse's view of the frame. */
function expectedValues(sample: FrameSample): Record<string, unknown> {
  const none = {
    index: -1,
    text: null,
    finish: null,
    usage: null,
    error: null,
    ids: null,
    idsText: null,
    logprobs: null,
    members: [null, null, null, null],
  };
  if (sample.value === null) return { flags: sample.done ? FRAME_FLAG.done : FRAME_FLAG.comment, ...none };
  const value = sample.value as {
    choices?: Record<string, unknown>[];
    usage?: unknown;
    error?: unknown;
    prompt_token_ids?: unknown;
  };
  const member = (name: string, found: unknown): unknown => (found == null ? null : { [name]: found });
  const choice = value.choices?.[0] ?? {};
  const delta = choice.delta as { content?: unknown } | undefined;
  let flags = 0;
  if (value.choices?.length === 0) flags |= FRAME_FLAG.noChoices;
  if ((value.choices?.length ?? 0) > 1) flags |= FRAME_FLAG.severalChoices;
  if (value.usage != null) flags |= FRAME_FLAG.usage;
  if (value.error != null) flags |= FRAME_FLAG.error;
  if (choice.finish_reason != null) flags |= FRAME_FLAG.finish;
  return {
    flags,
    index: choice.index ?? -1,
    text: choice.text ?? delta?.content ?? null,
    finish: choice.finish_reason ?? null,
    usage: value.usage ?? null,
    error: value.error ?? null,
    ids: choice.token_ids ?? null,
    idsText: choice.token_ids ?? null,
    logprobs: choice.logprobs ?? null,
    members: [
      member('usage', value.usage),
      member('token_ids', choice.token_ids),
      member('prompt_token_ids', choice.prompt_token_ids),
      member('prompt_token_ids', value.prompt_token_ids),
    ],
  };
}

t.test('the rows say what JSON.parse says', async t => {
  const random = seededRandom(seed + 3);
  t.comment(`SEED=${seed}`);
  const scanners = addon === null ? [twin] : [twin, createFrameScanner(addon)];
  for (let i = 0; i < cases; i++) {
    const stream = samples(random);
    const bytes = streamBytes(stream);
    for (const scanner of scanners) {
      scanner.scan(bytes, 0, bytes.length);
      const found = Array.from({ length: scanner.table[SCAN_HEADER.frames]! }, (_, row) =>
        rowValues(scanner, bytes, row),
      );
      const wanted = stream.map(expectedValues);
      const whole = scanner.table[SCAN_HEADER.consumed] === bytes.length;
      if (!whole || JSON.stringify(found) !== JSON.stringify(wanted))
        return t.same(found, wanted, `case ${i}`);
    }
  }
  t.pass(`${cases} streams`);
});
