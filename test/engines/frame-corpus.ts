/**
 * Random SSE streams for the frame scanner's tests: well-formed frames of vLLM's chat, completions and generate
 * streams whose text is made to confuse a scanner, and damaged copies of them.
 */
import { type Random, randomInteger } from '#millrace/runtime/random.js';

const PIECES = [
  '"finish_reason":"stop"',
  '"choices":[]',
  '"usage":{"a":1}',
  '"token_ids":[1,2]',
  '"error":{}',
  '\\',
  '"',
  '{',
  '}',
  '[',
  ']',
  ',',
  ':',
  '\n\ndata: [DONE]\n\n',
  '\r\n',
  '\u0000',
  'é',
  '漢字',
  '🙂',
  '\u2028',
  ' word',
  '0',
];
const EOLS = ['\n', '\n', '\n', '\r\n', '\r'];
const encoder = new TextEncoder();

export const pick = <T>(random: Random, values: readonly T[]): T =>
  values[randomInteger(random, values.length)]!;

function text(random: Random): string {
  return Array.from({ length: randomInteger(random, 6) }, () => pick(random, PIECES)).join('');
}

function tokenIds(random: Random): number[] {
  return Array.from({ length: randomInteger(random, 5) }, () => Math.floor(random() * 2 ** 32));
}

/** The same members in another order: a scanner may not rely on one. */
function shuffled(random: Random, value: Record<string, unknown>): Record<string, unknown> {
  const entries = Object.entries(value);
  for (let at = entries.length - 1; at > 0; at--) {
    const other = randomInteger(random, at + 1);
    [entries[at], entries[other]] = [entries[other]!, entries[at]!];
  }
  return Object.fromEntries(entries);
}

/** Now and then prompt ids, of a choice or of a frame. */
function promptIds(random: Random): Record<string, unknown> {
  return random() < 0.2 ? { prompt_token_ids: pick(random, [null, tokenIds(random)]) } : {};
}

function choice(random: Random): Record<string, unknown> {
  if (random() < 0.05) {
    return shuffled(random, { token_ids: tokenIds(random), ...promptIds(random) });
  }
  const body = pick(random, ['text', 'content', 'role', 'none']);
  return shuffled(random, {
    index: randomInteger(random, 4),
    ...(body === 'text' ? { text: text(random) } : {}),
    ...(body === 'content'
      ? { delta: { content: pick(random, [text(random), null]), tool_calls: [{ f: text(random) }] } }
      : {}),
    ...(body === 'role' ? { delta: { role: 'assistant', content: '' } } : {}),
    logprobs: pick<unknown>(random, [
      null,
      { content: [{ token: text(random), logprob: -1.5e-3, bytes: [34, 125] }] },
    ]),
    finish_reason: pick(random, [null, 'stop', 'length', text(random)]),
    stop_reason: null,
    ...(random() < 0.6 ? { token_ids: pick(random, [null, tokenIds(random)]) } : {}),
    ...promptIds(random),
  });
}

/** The value of one well-formed frame. */
export function frameValue(random: Random): Record<string, unknown> {
  const several = random() < 0.1;
  const choices = random() < 0.1 ? [] : [choice(random), ...(several ? [choice(random)] : [])];
  const usage = { usage: { prompt_tokens: 3 } };
  if (random() < 0.05) return shuffled(random, { ...usage, prompt_token_ids: tokenIds(random) });
  return shuffled(random, {
    id: `chatcmpl-${text(random)}`,
    created: 1_700_000_000,
    ...(random() < 0.9 ? { choices } : {}),
    ...(random() < 0.3
      ? { usage: pick(random, [null, { prompt_tokens: 3, details: { cached_tokens: 1 } }]) }
      : {}),
    ...(random() < 0.1 ? { error: pick(random, [null, { message: text(random), code: 500 }]) } : {}),
    ...promptIds(random),
    nested: { deep: [[[text(random)]], { a: { b: [true, false, null, 1e9] } }] },
  });
}

/** One event in bytes, with the value that its data line holds (null: a comment or `[DONE]`). */
export interface FrameSample {
  readonly text: string;
  readonly value: Record<string, unknown> | null;
  readonly done: boolean;
}

/** One well-formed event, with line ends of one kind, now and then with other fields beside the data. */
export function frameSample(random: Random): FrameSample {
  const eol = pick(random, EOLS);
  const kind = random();
  if (kind < 0.05) return { text: `: ${pick(random, ['ping', '"{'])}${eol}${eol}`, value: null, done: false };
  if (kind < 0.1) return { text: `data: [DONE]${eol}${eol}`, value: null, done: true };
  const value = frameValue(random);
  const json =
    random() < 0.8 ? JSON.stringify(value) : JSON.stringify(value, null, '\t').replaceAll('\n', ' ');
  const before = random() < 0.1 ? `event: message${eol}id: 7${eol}` : '';
  const after = random() < 0.1 ? `: note${eol}` : '';
  return {
    text: `${before}data:${random() < 0.8 ? ' ' : ''}${json}${eol}${after}${eol}`,
    value,
    done: false,
  };
}

/** Bytes of the samples, one after the other. */
export function streamBytes(samples: readonly FrameSample[]): Uint8Array {
  return encoder.encode(samples.map(sample => sample.text).join(''));
}

const SYNTAX = encoder.encode('"\\{}[],:\n\r 0n-dt');

/** A damaged copy: bytes flipped, replaced by syntax, removed or doubled. */
export function damaged(random: Random, bytes: Uint8Array): Uint8Array {
  let copy = Array.from(bytes);
  for (let n = 1 + randomInteger(random, 3); n > 0 && copy.length > 0; n--) {
    const at = randomInteger(random, copy.length);
    const what = random();
    if (what < 0.3) copy[at] = copy[at]! ^ (1 << randomInteger(random, 8));
    else if (what < 0.7) copy[at] = pick(random, Array.from(SYNTAX));
    else if (what < 0.85) copy.splice(at, 1 + randomInteger(random, 8));
    else copy = [...copy.slice(0, at), ...copy.slice(Math.max(0, at - 20))];
  }
  return Uint8Array.from(copy);
}
