// Promise: in token mode the client's text is the decoded ids up to the first stop, whatever the frames look like, and
// log-probabilities are those of the tokens of which some text is shown.

import t from 'tap';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { openSseStream } from '#millrace/engines/stream-decoder.js';
import type { Plan } from '#millrace/messages/records.js';
import { TokenAnswer } from '#millrace/plane/token-answer.js';
import { createDetokenizerTable } from '#millrace/preprocess/detokenizer.js';
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';
import type { Tokenizer } from '#millrace/preprocess/tokenizers/tokenizer.js';
import { type Random, randomInteger, seededRandom } from '#millrace/runtime/random.js';

const LIMITS = { firstFrameBytesMax: 1 << 20, frameBytesMax: 1 << 20 };

interface Case {
  readonly ids: number[];
  readonly stops: string[];
  readonly stopIds: number[];
  readonly minTokens: number;
  readonly includeStop: boolean;
  readonly logprobs: boolean;
}

function decode(tokenizer: Tokenizer, ids: readonly number[]): string {
  return new TextDecoder().decode(
    Buffer.concat(ids.filter(id => !tokenizer.isSpecial(id)).map(id => tokenizer.bytesOf(id)!)),
  );
}

/** Tokens of which some text is among the first `length` units; the bytes of an unfinished character are no text yet. */
function shownIds(tokenizer: Tokenizer, ids: readonly number[], length: number): number[] {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  let units = 0;
  return ids.filter(id => {
    const start = units;
    if (!tokenizer.isSpecial(id)) units += decoder.decode(tokenizer.bytesOf(id)!, { stream: true }).length;
    return start < length;
  });
}

/** Token by token: the whole text so far is decoded and searched anew. */
function naive(tokenizer: Tokenizer, { ids, stops, stopIds, minTokens, includeStop }: Case) {
  let searchedTo = 0;
  for (let count = 1; count <= ids.length; count++) {
    const id = ids[count - 1]!;
    const armed = count >= minTokens;
    const isEnd = armed && (stopIds.includes(id) || tokenizer.eosIds.includes(id));
    const text = decode(tokenizer, ids.slice(0, isEnd && !includeStop ? count - 1 : count));
    // A character that is still incomplete decodes to U+FFFD at the end: it is not yet text.
    const stable = isEnd ? text : text.replace(/\uFFFD+$/, '');
    let best: { at: number; stop: string } | null = null;
    for (const stop of stops) {
      for (let at = stable.indexOf(stop); at >= 0; at = stable.indexOf(stop, at + 1)) {
        if (at + stop.length <= searchedTo) continue;
        if (best === null || at + stop.length < best.at + best.stop.length) best = { at, stop };
        break;
      }
    }
    if (count > minTokens && best !== null) {
      return {
        text: stable.slice(0, includeStop ? best.at + best.stop.length : best.at),
        finish: 'stop',
        tokens: count,
        shown: shownIds(tokenizer, ids.slice(0, count), includeStop ? best.at + best.stop.length : best.at),
      };
    }
    searchedTo = stable.length;
    if (isEnd) {
      return { text, finish: 'stop', tokens: count, shown: ids.slice(0, includeStop ? count : count - 1) };
    }
  }
  return { text: decode(tokenizer, ids), finish: 'length', tokens: ids.length, shown: [...ids] };
}

/** As vLLM names tokens by id: the drawn one and another one. */
function logprobsOf(ids: readonly number[]): object {
  return {
    tokens: ids.map(id => `token_id:${id}`),
    token_logprobs: ids.map(id => -id),
    top_logprobs: ids.map(id => ({ [`token_id:${id}`]: -id, 'token_id:5': -7 })),
    text_offset: ids.map(() => 0),
  };
}

function frames(random: Random, choices: readonly (readonly number[])[], logprobs: boolean): string {
  const positions = choices.map(() => 0);
  let out = '';
  while (positions.some((position, index) => position < choices[index]!.length)) {
    const index = randomInteger(random, choices.length);
    const ids = choices[index]!;
    const from = positions[index]!;
    if (from >= ids.length) continue;
    const to = Math.min(ids.length, from + 1 + randomInteger(random, 3));
    positions[index] = to;
    const choice = {
      index,
      text: 'x',
      logprobs: logprobs ? logprobsOf(ids.slice(from, to)) : null,
      finish_reason: to === ids.length ? 'length' : null,
      token_ids: ids.slice(from, to),
    };
    out += `data: ${JSON.stringify({ id: 'c', choices: [choice] })}\n\n`;
  }
  return `${out}data: ${JSON.stringify({ choices: [], usage: { prompt_tokens: 3, completion_tokens: 9, prompt_tokens_details: { cached_tokens: 2 } } })}\n\ndata: [DONE]\n\n`;
}

function run(
  tokenizer: Tokenizer,
  table: ReturnType<typeof createDetokenizerTable>,
  random: Random,
  given: Case[],
) {
  const texts = given.map(() => '');
  const finishes: string[] = [];
  const shown: number[][] = given.map(() => []);
  const plan = {
    choices: given.length,
    promptTokens: 3,
    logprobs: given[0]!.logprobs ? 1 : null,
    skipSpecialTokens: true,
    calls: [],
    maxTokens: null,
    eosIds: tokenizer.eosIds,
    stop: {
      strings: given[0]!.stops,
      tokenIds: given[0]!.stopIds,
      minTokens: given[0]!.minTokens,
      includeStopString: given[0]!.includeStop,
    },
  } as unknown as Plan;
  const answer = new TokenAnswer(
    plan,
    table,
    {
      text: (choice, text, logprobs) => {
        texts[choice] += text;
        for (const { logprob, bytes } of logprobs ?? []) {
          shown[choice]!.push(-logprob);
          if (!Buffer.from(tokenizer.bytesOf(-logprob)!).equals(bytes))
            throw new Error('bytes of another token');
        }
        if (finishes[choice] !== undefined) throw new Error('text after the finish');
      },
      finish: (choice, reason) => {
        if (finishes[choice] !== undefined) throw new Error('finished twice');
        finishes[choice] = reason;
      },
    },
    null,
  );
  const stream = openSseStream(createFrameScanner(null), LIMITS);
  const bytes = Buffer.from(
    frames(
      random,
      given.map(one => one.ids),
      given[0]!.logprobs,
    ),
  );
  for (let at = 0; at < bytes.length; ) {
    const to = Math.min(bytes.length, at + 1 + randomInteger(random, 400));
    const fault = stream.push(bytes.subarray(at, to), batch => {
      const outcome = answer.take(batch, { choiceBase: 0, choices: given.length });
      if (outcome.malformed || outcome.engineError !== null) throw new Error('a good frame was refused');
    });
    if (fault !== null) throw new Error(fault);
    at = to;
  }
  return { answer, texts, finishes, shown };
}

t.test('random ids, stops, minimums, frames and cuts', async t => {
  const seed = Number(process.env.SEED ?? Date.now() % 1e6);
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  const tokenizer = await loadTokenizer('chatml-cl100k');
  const table = createDetokenizerTable(tokenizer);
  const alphabet = [...'ab \n', 'ü', '漢', '🙂'].flatMap(text => [...tokenizer.encode(text)]);
  let stopped = 0;
  for (let round = 0; round < 2000; round++) {
    const draw = (): number =>
      random() < 0.02 ? tokenizer.eosIds[0]! : alphabet[randomInteger(random, alphabet.length)]!;
    const stops = Array.from({ length: randomInteger(random, 3) }, () =>
      decode(tokenizer, Array.from({ length: 1 + randomInteger(random, 3) }, draw)).replaceAll('\uFFFD', ''),
    ).filter(stop => stop !== '');
    const shared = {
      stops,
      stopIds: random() < 0.3 ? [alphabet[0]!] : [],
      minTokens: randomInteger(random, 8),
      includeStop: random() < 0.3,
      logprobs: random() < 0.5,
    };
    const given = Array.from({ length: 1 + randomInteger(random, 3) }, () => ({
      ids: Array.from({ length: 1 + randomInteger(random, 30) }, draw),
      ...shared,
    }));
    const { answer, texts, finishes, shown } = run(tokenizer, table, random, given);
    const wanted = given.map(one => naive(tokenizer, one));
    const same = wanted.every(
      (one, index) =>
        one.text === texts[index] &&
        one.finish === finishes[index] &&
        (shared.logprobs ? one.shown : []).join() === shown[index]!.join(),
    );
    const tokens = wanted.reduce((sum, one) => sum + one.tokens, 0);
    if (!same || answer.usage().completionTokens !== tokens || !answer.isComplete) {
      t.same(
        { texts, finishes, shown, tokens: answer.usage().completionTokens },
        { wanted, tokens },
        `round ${round}: ${JSON.stringify(given)}`,
      );
      return;
    }
    if (finishes.includes('stop')) stopped++;
    if (answer.usage().cachedTokens !== 2) t.fail('the engine said how much was cached');
  }
  t.ok(stopped > 300, `${stopped} rounds stopped early`);
});
