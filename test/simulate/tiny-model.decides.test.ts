// Promise: under the tiny model every byte of every used page decides the tokens, and nothing else but tokens and seed does.

import t from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { EngineCore } from '#millrace/simulate/engine-core.js';
import { type EngineSettings, resolveEngineSettings } from '#millrace/simulate/engine-settings.js';
import type { EngineSequence, SequenceRequest } from '#millrace/simulate/sequence.js';
import { KvPages } from '#millrace/simulate/tiny/kv-pages.js';
import { TinyModel } from '#millrace/simulate/tiny/tiny-model.js';
import { digestPrompt } from '#millrace/simulate/token-source.js';

const seed = Number(process.env.SEED ?? 20_261_120);
t.comment(`SEED=${seed}`);

const EOS = 9999;
const drawable = { ids: Uint32Array.from({ length: 1500 }, (_, at) => 1000 + at), eosId: EOS };
type Ids = number[];

interface TinyEngine {
  readonly core: EngineCore<Ids>;
  readonly pages: KvPages;
  add(prompt: readonly number[], more?: Partial<SequenceRequest<Ids>>): EngineSequence<Ids>;
}

function tinyEngine(given: Partial<EngineSettings> = {}): TinyEngine {
  const settings = resolveEngineSettings({ numGpuBlocks: 64, blockSize: 16, ...given });
  const pages = new KvPages(settings.numGpuBlocks, settings.blockSize);
  const model = new TinyModel({ ...drawable, eosRate: settings.eosRate, seed: settings.seed }, pages);
  const core = new EngineCore<Ids>(settings, drawable, null, model);
  const add: TinyEngine['add'] = (prompt, more = {}) =>
    core.add(
      {
        prompt: digestPrompt(prompt, settings.blockSize),
        maxTokens: 12,
        minTokens: 0,
        ignoreEos: false,
        stopTokenIds: [],
        choice: 0,
        owner: [],
        ...more,
      },
      0,
    );
  return { core, pages, add };
}

function step(core: EngineCore<Ids>): void {
  for (const sequence of core.executePass(0).emitted) sequence.owner.push(...sequence.fresh);
}

function drain(core: EngineCore<Ids>): void {
  while (core.running + core.waiting > 0) step(core);
}

function answerOf(prompt: readonly number[], given: Partial<EngineSettings> = {}, maxTokens = 12): Ids {
  const { core, add } = tinyEngine(given);
  const { owner } = add(prompt, { maxTokens });
  drain(core);
  return owner;
}

const random = seededRandom(seed);
const promptOf = (length: number): Ids => Array.from({ length }, () => randomInteger(random, 100_000));

t.test('chunks, block sizes, drafts and batches change nothing', async t => {
  for (let round = 0; round < 12; round++) {
    const prompt = promptOf(1 + randomInteger(random, 150));
    const plain = answerOf(prompt, { blockSize: 16 }, 30);
    t.equal(plain.length, 30);
    for (let variant = 0; variant < 4; variant++) {
      const given = {
        blockSize: 1 + randomInteger(random, 40),
        numGpuBlocks: 400,
        maxNumBatchedTokens: 1 + randomInteger(random, 60),
        tokensPerStep: 1 + randomInteger(random, 8),
      };
      const { core, add } = tinyEngine(given);
      add(promptOf(1 + randomInteger(random, 60)));
      const { owner } = add(prompt, { maxTokens: 30 });
      add(promptOf(1 + randomInteger(random, 60)), { choice: 1 });
      drain(core);
      t.same(owner, plain, JSON.stringify(given));
    }
    t.notSame(answerOf(prompt, { seed: 1 }, 30), plain, 'another seed is another model');
  }
});

t.test('a cached prefix gives the same text as a computed one', async t => {
  for (let round = 0; round < 12; round++) {
    const shared = promptOf(16 * (1 + randomInteger(random, 5)));
    const { core, add } = tinyEngine();
    add(shared);
    drain(core);
    for (const tail of [0, 1, 7, 20]) {
      const prompt = [...shared, ...promptOf(tail)];
      const sequence = add(prompt);
      drain(core);
      t.ok(sequence.cachedTokens >= shared.length - 1, `${sequence.cachedTokens} cached`);
      t.same(sequence.owner, answerOf(prompt));
    }
  }
});

t.test('preemption changes nothing', async t => {
  let preemptions = 0;
  for (const tokensPerStep of [1, 3, 8]) {
    const given = { numGpuBlocks: 24, blockSize: 4, maxModelLen: 96, tokensPerStep };
    const { core, add } = tinyEngine(given);
    const prompts = Array.from({ length: 5 }, () => promptOf(10 + randomInteger(random, 30)));
    const sequences = prompts.map(prompt => add(prompt, { maxTokens: 40 }));
    drain(core);
    preemptions += core.totals.preemptions;
    sequences.forEach((one, at) => {
      t.same(one.owner, answerOf(prompts[at]!, { blockSize: 4 }, 40));
    });
    t.equal(core.pool.active, 0);
  }
  t.ok(preemptions > 3, `${preemptions} preemptions`);
});

/** Prefills and decodes a little, then `harm`s the engine; the rest of the answer. */
function restAfter(
  prompt: readonly number[],
  blockSize: number,
  harm: (sequence: EngineSequence<Ids>, pages: KvPages) => void,
): Ids {
  const { core, pages, add } = tinyEngine({ blockSize });
  const sequence = add(prompt);
  step(core);
  step(core);
  harm(sequence, pages);
  drain(core);
  return sequence.owner.slice(2);
}

t.test('any changed byte of a used slot changes the answer', async t => {
  let same = 0;
  const trials = 400;
  for (let trial = 0; trial < trials; trial++) {
    const blockSize = 1 + randomInteger(random, 20);
    const prompt = promptOf(1 + randomInteger(random, 40));
    const plain = restAfter(prompt, blockSize, () => {});
    const harmed = restAfter(prompt, blockSize, (sequence, pages) => {
      const position = randomInteger(random, sequence.computed);
      const bytes = pages.bytesOf(sequence.blocks[Math.floor(position / blockSize)]!);
      const rowBytes = pages.blockBytes / 4 / blockSize;
      const row = randomInteger(random, 4) * blockSize + (position % blockSize);
      bytes[row * rowBytes + randomInteger(random, rowBytes)]! ^= 1 + randomInteger(random, 255);
    });
    if (harmed.join() === plain.join()) same++;
  }
  t.equal(same, 0, `${trials} trials`);
});

t.test('a stale, swapped or empty block changes the answer', async t => {
  for (let trial = 0; trial < 60; trial++) {
    const prompt = promptOf(40 + randomInteger(random, 40));
    const plain = restAfter(prompt, 8, () => {});
    const harms: ((sequence: EngineSequence<Ids>, pages: KvPages) => void)[] = [
      ({ blocks }, pages) => pages.bytesOf(blocks[1]!).set(pages.bytesOf(blocks[2]!)),
      ({ blocks }) => blocks.splice(1, 2, blocks[2]!, blocks[1]!),
      ({ blocks }, pages) => pages.bytesOf(blocks[3]!).fill(0),
      ({ blocks }, pages) =>
        pages
          .bytesOf(blocks[0]!)
          .subarray(pages.blockBytes / 2)
          .fill(0),
    ];
    harms.forEach((harm, at) => {
      t.notSame(restAfter(prompt, 8, harm), plain, `harm ${at}`);
    });
    const { core, pages, add } = tinyEngine({ blockSize: 8 });
    const other = add([prompt[0]! + 1, ...prompt.slice(1)]);
    const own = add(prompt);
    step(core);
    step(core);
    // The same tokens at the same places, behind another first token.
    pages.bytesOf(own.blocks[2]!).set(pages.bytesOf(other.blocks[2]!));
    drain(core);
    t.notSame(own.owner.slice(2), plain, 'a block of another prefix');
  }
});

t.test('pages may be memory from outside, and must fit', async t => {
  const memory = new SharedArrayBuffer(4 * 8 * 256);
  const pages = new KvPages(4, 8, memory);
  t.equal(pages.blockBytes, 2048);
  pages.bytesOf(3)[2047] = 7;
  t.equal(new Uint8Array(memory)[8191], 7);
  t.throws(() => new KvPages(5, 8, memory), { code: 'MILLRACE_CONFIG', param: 'kvMemory' });
  t.throws(() => new KvPages(4_194_304, 1024), { code: 'MILLRACE_CONFIG', param: 'numGpuBlocks' });
  t.throws(() => pages.bytesOf(4));
});

t.test('speed', async t => {
  const { core, add } = tinyEngine({ numGpuBlocks: 512, blockSize: 16 });
  for (let warm = 0; warm < 2; warm++) {
    const started = performance.now();
    for (let at = 0; at < 4; at++) add(promptOf(512), { maxTokens: 64 });
    step(core);
    const middle = performance.now();
    drain(core);
    const end = performance.now();
    t.comment(
      `prefill ${Math.round(2048e3 / (middle - started))} tokens/s, decode ${Math.round(252e3 / (end - middle))} tokens/s`,
    );
  }
  t.equal(core.pool.active, 0);
});
