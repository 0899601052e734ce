// Promise: a frame without its cut members is the same JSON object without them, and every other byte is the engine's.
import t from 'tap';
import type { FrameBatch } from '#millrace/engines/contract.js';
import {
  type FrameCuts,
  isCut,
  KEPT_WORDS_MAX,
  keptRanges,
  rewriteFrame,
} from '#millrace/engines/frame-cuts.js';
import { FRAME, FRAME_FLAG, SCAN_HEADER, SCAN_HEADER_WORDS } from '#millrace/engines/frame-descriptor.js';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { seededRandom } from '#millrace/runtime/random.js';
import { type FrameSample, frameSample, pick } from './frame-corpus.js';

const seed = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const cases = process.env.MILLRACE_TEST_LONG === '1' ? 200_000 : 8000;
const scanner = createFrameScanner(loadAddon());
const encoder = new TextEncoder();
const decoder = new TextDecoder();
const out = new Int32Array(KEPT_WORDS_MAX);

function scan(text: string): FrameBatch {
  const bytes = encoder.encode(text);
  scanner.scan(bytes, 0, bytes.length);
  return { bytes, count: scanner.table[SCAN_HEADER.frames]!, table: scanner.table, ids: scanner.ids };
}

/** The frame of the first row, cut. */
function cut(batch: FrameBatch, cuts: FrameCuts): string {
  const { bytes, table } = batch;
  if (!isCut(batch, 0, cuts)) return decoder.decode(bytes);
  if ((table[SCAN_HEADER_WORDS + FRAME.flags]! & FRAME_FLAG.severalChoices) !== 0) {
    return decoder.decode(rewriteFrame(batch, 0, cuts)!);
  }
  let text = '';
  const words = keptRanges(batch, 0, cuts, out);
  for (let word = 0; word < words; word += 2) {
    text += decoder.decode(bytes.subarray(out[word], out[word + 1]));
  }
  return text;
}

const dataOf = (frame: string): unknown => {
  const line = frame.split(/\r\n|\r|\n/).find(one => one.startsWith('data:'));
  return line === undefined ? null : JSON.parse(line.slice(5));
};

/** What JSON.parse and delete make of it; null for a frame that goes as a whole. */
function expected(sample: FrameSample, cuts: FrameCuts): unknown {
  const value = structuredClone(sample.value) as Record<string, unknown>;
  const choices = (value.choices ?? []) as Record<string, unknown>[];
  if (cuts.usage && value.usage != null) {
    if (value.choices !== undefined && choices.length === 0) return null;
    delete value.usage;
  }
  for (const holder of cuts.ids ? [value, ...choices] : []) {
    for (const name of ['token_ids', 'prompt_token_ids']) if (holder[name] !== null) delete holder[name];
  }
  return value;
}

t.test('random frames, every combination of cuts', async t => {
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  let changed = 0;
  for (let i = 0; i < cases; i++) {
    const sample = frameSample(random);
    const cuts = { ids: pick(random, [true, false]), usage: pick(random, [true, false]) };
    const batch = scan(sample.text);
    const got = cut(batch, cuts);
    if (sample.value === null) {
      if (got !== sample.text) return t.equal(got, sample.text, `case ${i}`);
      continue;
    }
    const wanted = expected(sample, cuts);
    if (JSON.stringify(wanted) === JSON.stringify(sample.value) && !batchHasSeveral(batch)) {
      if (got !== sample.text) return t.equal(got, sample.text, `case ${i}: nothing to cut`);
      continue;
    }
    changed++;
    if (JSON.stringify(dataOf(got)) !== JSON.stringify(wanted)) {
      return t.same({ got, cuts }, { wanted, text: sample.text }, `case ${i}`);
    }
  }
  t.ok(changed > cases / 4, `${changed} frames lost something`);
});

function batchHasSeveral(batch: FrameBatch): boolean {
  return (batch.table[SCAN_HEADER_WORDS + FRAME.flags]! & FRAME_FLAG.severalChoices) !== 0;
}

t.test('commas and white space', async t => {
  const both = { ids: true, usage: true };
  const cutText = (json: string): string => cut(scan(`data: ${json}\n\n`), both).slice(6, -2);
  const ids = '"token_ids":[1]';
  const prompt = '"prompt_token_ids" : [1,2]';
  const tricky = JSON.stringify('\\","token_ids":[1],{');
  const frames: [string, string][] = [
    [`{"choices":[{"a":1,${ids}}]}`, '{"choices":[{"a":1}]}'],
    [`{"choices":[{${ids},"a":1}]}`, '{"choices":[{"a":1}]}'],
    [`{"choices":[{${ids}}]}`, '{"choices":[{}]}'],
    [`{"choices":[{"a":1,${ids} , ${prompt}}]}`, '{"choices":[{"a":1}]}'],
    [`{"choices":[{"a":1 , ${prompt} ,\t${ids} }],${prompt},"usage":{"b":","}}`, '{"choices":[{"a":1  }]}'],
    [`{${prompt}, "usage":{}, "choices":[{}]}`, '{  "choices":[{}]}'],
    [`{${prompt}, "usage":{}}`, '{}'],
    [`{"a":${tricky},"choices":[{"token_ids":[]}]}`, `{"a":${tricky},"choices":[{}]}`],
    ['{"choices":[{"token_ids":null}],"usage":null}', '{"choices":[{"token_ids":null}],"usage":null}'],
  ];
  for (const [json, wanted] of frames) t.equal(cutText(json), wanted, json);
  t.equal(cut(scan('data: {"choices":[],"usage":{}}\n\n'), both), '', 'a usage chunk goes whole');
  t.equal(rewriteFrame(scan('data: {"choices":[{},1.2.3]}\n\n'), 0, both), null, 'not JSON after all');
});
