// Streamed text is what a streaming TextDecoder makes of the same bytes, whole characters only, however ids are batched.
import t from 'tap';
import { createDetokenizerTable, StreamDetokenizer } from '#millrace/preprocess/detokenizer.js';
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';
import { randomInteger } from '#millrace/runtime/random.js';
import { pickOne, randomText, testRandom } from './random-text.js';

const CASES = 4000;

const tokenizer = await loadTokenizer('chatml-cl100k');
const table = createDetokenizerTable(tokenizer);
const NO_BYTES = new Uint8Array(0);
const fragmentIds = [...table.fragments.keys()];
const IM_END = tokenizer.specialId('<|im_end|>')!;

/** What the bytes of `ids` decode to, token by token, with the flush at the end as the last element. */
function oracleTexts(ids: Uint32Array, skipSpecialTokens: boolean): string[] {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  const texts: string[] = [];
  for (const id of ids) {
    const skipped = skipSpecialTokens && tokenizer.isSpecial(id);
    const bytes = skipped ? NO_BYTES : (tokenizer.bytesOf(id) ?? NO_BYTES);
    texts.push(decoder.decode(bytes, { stream: true }));
  }
  texts.push(decoder.decode());
  return texts;
}

t.test('random ids, fragments and real text', async t => {
  const { seed, random } = testRandom();
  t.comment(`SEED=${seed}`);
  let broken = 0;
  for (let run = 0; run < CASES; run++) {
    const ids =
      run % 3 === 0
        ? tokenizer.encode(randomText(random))
        : Uint32Array.from({ length: randomInteger(random, 40) }, () => {
            const kind = randomInteger(random, 10);
            if (kind < 6) return pickOne(random, fragmentIds);
            // Beyond the vocabulary too: engines pad theirs.
            return kind === 9 ? 100_250 + randomInteger(random, 60) : randomInteger(random, 100_000);
          });
    const skip = randomInteger(random, 2) === 0;
    const expected = oracleTexts(ids, skip);
    const stream = new StreamDetokenizer(table, skip);
    for (let at = 0; at < ids.length; ) {
      const count = Math.min(ids.length - at, randomInteger(random, 5));
      const text = stream.push(ids, at, count);
      if (text !== expected.slice(at, at + count).join('')) {
        t.equal(text, expected.slice(at, at + count).join(''), `SEED=${seed} case ${run}, ids ${ids.join()}`);
        return;
      }
      at += count;
    }
    const rest = stream.end();
    if (rest !== expected.at(-1))
      t.equal(rest, expected.at(-1), `SEED=${seed} case ${run}, ids ${ids.join()}`);
    if (expected.join('').includes('\ufffd')) broken++;
  }
  t.ok(broken > CASES / 10, `${broken} of ${CASES} cases held broken characters`);
});

t.test('a character in pieces waits, and may wait across a skipped special token', async t => {
  const ids = Uint32Array.from([...Buffer.from('👍')].map(idOfByte));
  const stream = new StreamDetokenizer(table, true);
  t.equal(stream.push(ids, 0, 2), '');
  t.equal(stream.push(Uint32Array.of(IM_END), 0, 1), '');
  t.equal(stream.push(ids, 2, 2), '👍');
  t.equal(stream.push(ids, 0, 3), '');
  t.equal(stream.end(), '\ufffd', 'the end makes it a broken one');
  t.equal(stream.end(), '', 'once');
  t.equal(stream.push(ids, 0, 4), '👍', 'and the next text starts afresh');

  const showing = new StreamDetokenizer(table, false);
  t.equal(showing.push(Uint32Array.of(ids[0]!, IM_END), 0, 2), '\ufffd<|im_end|>');
});

function idOfByte(byte: number): number {
  for (let id = 0; id < 256; id++) if (tokenizer.bytesOf(id)![0] === byte) return id;
  throw new Error(`no id for byte ${byte}`);
}
