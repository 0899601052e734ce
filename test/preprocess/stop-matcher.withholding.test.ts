// No part of a stop string is ever released, nothing else is lost, and how the text was cut makes no difference.
import t from 'tap';
import { StopMatcher } from '#millrace/preprocess/stop-matcher.js';
import { type Random, randomInteger } from '#millrace/runtime/random.js';
import { testRandom } from './random-text.js';

const CASES = 40_000;

interface Piece {
  readonly text: string;
  readonly armed: boolean;
}

function randomString(random: Random, lengthMax: number, letters: string): string {
  let text = '';
  for (let length = randomInteger(random, lengthMax); length >= 0; length--) {
    text += letters[randomInteger(random, letters.length)];
  }
  return text;
}

/** The match that ends first where the text is armed; of several, the first of the list. By looking at every end of every string. */
function naiveMatch(
  stops: readonly string[],
  pieces: readonly Piece[],
): { start: number; end: number } | null {
  const text = pieces.map(piece => piece.text).join('');
  const armed = pieces.flatMap(piece => Array<boolean>(piece.text.length).fill(piece.armed));
  for (let end = 1; end <= text.length; end++) {
    if (!armed[end - 1]) continue;
    const found = stops.find(stop => text.slice(0, end).endsWith(stop));
    if (found !== undefined) return { start: end - found.length, end };
  }
  return null;
}

/** The most that may be released of `text`: up to the longest tail that begins a stop string. */
function releasable(stops: readonly string[], text: string): number {
  for (let start = 0; start < text.length; start++) {
    const tail = text.slice(start);
    if (stops.some(stop => stop.length > tail.length && stop.startsWith(tail))) return start;
  }
  return text.length;
}

function checkCase(stops: readonly string[], pieces: readonly Piece[], include: boolean): string | null {
  const matcher = new StopMatcher(stops, include);
  const expected = naiveMatch(stops, pieces);
  let pushed = '';
  let released = '';
  for (const piece of pieces) {
    pushed += piece.text;
    const { text, matched } = matcher.push(piece.text, piece.armed);
    released += text;
    if (matched !== null) {
      if (expected === null || pushed.length < expected.end) return `false match of ${matched}`;
      const whole = pushed.slice(0, include ? expected.end : expected.start);
      if (pushed.slice(expected.start, expected.end) !== matched) return `matched ${matched}`;
      return released === whole && matcher.end() === '' ? null : `released ${released}, not ${whole}`;
    }
    if (expected !== null && pushed.length >= expected.end) return 'missed match';
    const allowed = releasable(stops, pushed);
    if (released !== pushed.slice(0, allowed))
      return `released ${released} of ${pushed}, not ${allowed} units`;
  }
  released += matcher.end();
  return released === pushed ? null : `ended with ${released}, not ${pushed}`;
}

t.test('random stops, texts and cuts over small alphabets', async t => {
  const { seed, random } = testRandom();
  t.comment(`SEED=${seed}`);
  let matches = 0;
  for (let run = 0; run < CASES; run++) {
    const letters = run % 2 === 0 ? 'ab' : 'abcd';
    const stops = Array.from({ length: 1 + randomInteger(random, 4) }, () =>
      randomString(random, 5, letters),
    );
    const armFrom = randomInteger(random, 3) === 0 ? randomInteger(random, 8) : 0;
    const pieces = Array.from({ length: randomInteger(random, 12) }, (_, index) => ({
      text: randomInteger(random, 8) === 0 ? '' : randomString(random, 4, letters),
      armed: index >= armFrom,
    }));
    const include = randomInteger(random, 2) === 0;
    const problem = checkCase(stops, pieces, include);
    if (problem !== null) {
      t.fail(`SEED=${seed} case ${run}: ${problem}; ${JSON.stringify({ stops, pieces, include })}`);
      return;
    }
    if (naiveMatch(stops, pieces) !== null) matches++;
  }
  t.ok(matches > CASES / 10 && matches < CASES, `${matches} of ${CASES} cases matched`);
});

t.test('named cases', async t => {
  const across = new StopMatcher(['</answer>'], false);
  t.same(across.push('42</ans', true), { text: '42', matched: null });
  t.same(across.push('x</answer', true), { text: '</ansx', matched: null });
  t.same(across.push('>tail', true), { text: '', matched: '</answer>' });

  const shown = new StopMatcher(['END'], true);
  t.same(shown.push('the E', true), { text: 'the ', matched: null });
  t.same(shown.push('ND.', true), { text: 'END', matched: 'END' });

  const early = new StopMatcher(['abab'], false);
  t.same(early.push('abab', false), { text: 'ab', matched: null }, 'an ignored match may begin the next');
  t.same(early.push('ab', true), { text: '', matched: 'abab' });

  const both = new StopMatcher(['b', 'ab'], false);
  t.same(both.push('xab', true), { text: 'xa', matched: 'b' }, 'of two that end together the first listed');
  const turned = new StopMatcher(['ab', 'b'], false);
  t.same(turned.push('xab', true), { text: 'x', matched: 'ab' });

  const none = new StopMatcher([], false);
  t.same(none.push('anything', true), { text: 'anything', matched: null });
  t.equal(none.end(), '');
  t.throws(() => new StopMatcher([''], false));
  t.throws(() => both.push('more', true), 'nothing may follow a match');
});

t.test('a text that keeps almost matching costs linear time and memory', async t => {
  const stop = `${'a'.repeat(255)}b`;
  const matcher = new StopMatcher(Array<string>(16).fill(stop), false);
  let released = 0;
  for (let push = 0; push < 2000; push++) released += matcher.push('a'.repeat(50), true).text.length;
  t.equal(released, 100_000 - 255, 'exactly the longest possible beginning is withheld');
});
