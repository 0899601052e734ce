// Promise: the simulated engine schedules like vLLM, and what it generates depends on the tokens so far alone.

import t from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { EngineCore } from '#millrace/simulate/engine-core.js';
import { type EngineSettings, resolveEngineSettings } from '#millrace/simulate/engine-settings.js';
import type { EngineSequence, SequenceRequest } from '#millrace/simulate/sequence.js';
import { decodeMs, prefillMs } from '#millrace/simulate/timing.js';
import { digestPrompt } from '#millrace/simulate/token-source.js';

const seed = Number(process.env.SEED ?? 7);
t.comment(`SEED=${seed}`);

const EOS = 9999;
const drawable = { ids: Uint32Array.from({ length: 500 }, (_, at) => 1000 + at), eosId: EOS };
type Ids = number[];
type Sequence = EngineSequence<Ids>;

const coreOf = (settings: Partial<EngineSettings> = {}): EngineCore<Ids> =>
  new EngineCore<Ids>(resolveEngineSettings(settings), drawable);

const requestOf = (
  core: EngineCore<Ids>,
  prompt: ArrayLike<number>,
  more: Partial<SequenceRequest<Ids>> = {},
): SequenceRequest<Ids> => ({
  prompt: digestPrompt(prompt, core.settings.blockSize),
  maxTokens: 16,
  minTokens: 0,
  ignoreEos: false,
  stopTokenIds: [],
  choice: 0,
  owner: [],
  ...more,
});

const promptOf = (length: number, first = 0): Ids => Array.from({ length }, (_, at) => first + at);

/** Runs to the end, passing each token to its owner's list. Returns the virtual time at the end. */
function drain(core: EngineCore<Ids>, startMs = 0): number {
  let nowMs = startMs;
  while (core.running + core.waiting > 0) {
    const pass = core.executePass(nowMs);
    for (const sequence of pass.emitted) sequence.owner.push(...sequence.fresh);
    nowMs = pass.endMs;
  }
  return nowMs;
}

function generate(prompt: ArrayLike<number>, more: Partial<SequenceRequest<Ids>>, settings = {}): Ids {
  const core = coreOf(settings);
  const sequence = core.add(requestOf(core, prompt, more), 0);
  drain(core);
  return sequence.owner;
}

t.test('a continuation from prompt and answer so far is the tail of the undisturbed answer', async t => {
  const random = seededRandom(seed);
  for (let round = 0; round < 40; round++) {
    const prompt = Array.from({ length: 1 + randomInteger(random, 200) }, () =>
      randomInteger(random, 100_000),
    );
    const choice = randomInteger(random, 4);
    const maxTokens = 2 + randomInteger(random, 60);
    const whole = generate(prompt, { choice, maxTokens }, { blockSize: 16 });
    t.equal(whole.length, maxTokens, 'exactly max_tokens without stops');
    const cut = 1 + randomInteger(random, maxTokens - 1);
    const moved = [...prompt, ...whole.slice(0, cut)];
    t.same(generate(moved, { maxTokens: maxTokens - cut }, { blockSize: 32 }), whole.slice(cut));
    moved[randomInteger(random, moved.length)]! += 1;
    t.notSame(
      generate(moved, { maxTokens: 8 }),
      whole.slice(cut, cut + 8),
      'one wrong token changes the rest',
    );
  }
});

t.test('choices differ from their first token on, seeds differ', async t => {
  const prompt = promptOf(20);
  const firsts = [0, 1, 2, 3].map(choice => generate(prompt, { choice })[0]);
  t.equal(new Set(firsts).size, 4);
  t.notSame(generate(prompt, {}, { seed: 1 }), generate(prompt, {}, { seed: 2 }));
});

t.test('ends: end-of-sequence, its masks, and stop ids', async t => {
  const prompt = promptOf(20);
  const long = { maxTokens: 400 };
  const ended = generate(prompt, long, { eosRate: 0.1 });
  t.ok(ended.length < 400);
  t.equal(ended.at(-1), EOS);
  const ignoring = generate(prompt, { ...long, ignoreEos: true }, { eosRate: 0.1 });
  t.equal(ignoring.length, 400);
  t.same(ignoring.slice(0, ended.length), ended, 'ignoring does not change the tokens');
  const late = generate(prompt, { ...long, minTokens: 100 }, { eosRate: 0.9 });
  t.notOk(late.slice(0, 100).includes(EOS), 'masked below min_tokens');
  t.ok(late.length > 100 && late.length < 130);
  const plain = generate(prompt, { maxTokens: 50 });
  const stop = plain[20]!;
  const core = coreOf();
  const sequence = core.add(requestOf(core, prompt, { maxTokens: 50, stopTokenIds: [stop] }), 0);
  drain(core);
  t.same(sequence.owner, plain.slice(0, plain.indexOf(stop) + 1));
  t.same([sequence.finish, sequence.stopReason], ['stop', stop]);
});

t.test('a pass pays for the prompt, then for the decode step, in that order', async t => {
  const core = coreOf({ numGpuBlocks: 1000 });
  core.add(requestOf(core, promptOf(1000), { maxTokens: 2 }), 0);
  const first = core.executePass(100);
  t.equal(first.prefillMs, prefillMs(1000));
  t.equal(first.decodeMs, decodeMs(1000 / 64_000));
  t.equal(first.endMs, 100 + first.prefillMs + first.decodeMs);
  const second = core.executePass(first.endMs);
  t.same([second.prefillMs, second.decodeMs], [0, decodeMs(1001 / 64_000)]);
  t.same([second.emitted[0]!.finish, core.running, core.pool.active], ['length', 0, 0]);
  const fast = coreOf({ numGpuBlocks: 1000, speed: 10 });
  fast.add(requestOf(fast, promptOf(1000)), 0);
  t.equal(fast.executePass(0).prefillMs, prefillMs(1000) / 10);
  const free = coreOf({ speed: 'unlimited' });
  free.add(requestOf(free, promptOf(1000)), 0);
  t.equal(free.executePass(5).endMs, 5);
});

t.test('a prompt above the budget is computed in chunks beside running answers', async t => {
  const core = coreOf({ maxNumBatchedTokens: 100 });
  const small = core.add(requestOf(core, promptOf(10)), 0);
  core.executePass(0);
  const large = core.add(requestOf(core, promptOf(250, 5000)), 0);
  const steps = [1, 2, 3].map(() => core.executePass(0).emitted.length);
  t.same(steps, [1, 1, 2], 'the running answer goes on; the large one begins when its prompt is done');
  t.equal(small.generated, 4);
  t.equal(large.computed, 250);
  t.equal(large.length, 251, 'the newest token has no KV yet');
});

t.test(
  'prefix cache: full blocks are shared in the same pass, a cached prompt still computes its tail',
  async t => {
    const core = coreOf({ blockSize: 16 });
    const prompt = promptOf(64);
    const both = [0, 1].map(choice => core.add(requestOf(core, prompt, { maxTokens: 1, choice }), 0));
    const pass = core.executePass(0);
    t.same(
      both.map(sequence => sequence.cachedTokens),
      [0, 63],
      'the second one finds what the first one has just begun',
    );
    t.equal(pass.emitted.length, 2);
    const again = core.add(requestOf(core, prompt, { maxTokens: 1 }), 0);
    t.equal(core.executePass(0).prefillMs, prefillMs(1));
    t.equal(again.cachedTokens, 63);
    const salted = { ...requestOf(core, prompt), prompt: digestPrompt(prompt, 16, 'tenant'), maxTokens: 1 };
    const other = core.add(salted, 0);
    drain(core);
    t.equal(other.cachedTokens, 0, 'another salt shares nothing');
    t.same(other.owner, generate(prompt, { maxTokens: 1 }), 'and yet the text is the same');
  },
);

t.test('preemption takes the newest, loses no token and changes no text', async t => {
  const core = coreOf({ numGpuBlocks: 10, blockSize: 16, maxModelLen: 160 });
  const prompts = [promptOf(60), promptOf(60, 1000), promptOf(30, 2000)];
  const sequences = prompts.map(prompt => core.add(requestOf(core, prompt, { maxTokens: 60 }), 0));
  drain(core);
  t.ok(core.totals.preemptions > 0, `${core.totals.preemptions} preemptions`);
  t.equal(sequences[0]!.preemptions, 0, 'the oldest is never the victim');
  sequences.forEach((sequence, at) => {
    t.same(sequence.owner, generate(prompts[at]!, { maxTokens: 60 }));
  });
  t.equal(core.pool.active, 0);
});

t.test('what can never fit is rejected without a token and holds up nobody', async t => {
  const core = coreOf({ maxModelLen: 100 });
  const tooLong = core.add(requestOf(core, promptOf(90), { maxTokens: 11 }), 0);
  const fits = core.add(requestOf(core, promptOf(90), { maxTokens: 10 }), 0);
  const pass = core.executePass(0);
  t.same(pass.rejected, [tooLong]);
  t.same(pass.emitted, [fits]);
  t.equal(tooLong.state, 'rejected');
});

t.test('random interleavings of arrival, pass and abort keep every block accounted for', async t => {
  const random = seededRandom(seed);
  let preemptions = 0;
  let aborts = 0;
  for (let round = 0; round < 30; round++) {
    const numGpuBlocks = 8 + randomInteger(random, 24);
    const core = coreOf({ numGpuBlocks, blockSize: 4, maxNumSeqs: 6, maxNumBatchedTokens: 24 });
    const all: Sequence[] = [];
    for (let step = 0; step < 150; step++) {
      const what = random();
      if (what < 0.25) {
        const prompt = promptOf(1 + randomInteger(random, numGpuBlocks), randomInteger(random, 3) * 1000);
        const choice = randomInteger(random, 3);
        all.push(core.add(requestOf(core, prompt, { choice, maxTokens: 1 + randomInteger(random, 30) }), 0));
      } else if (what < 0.33 && all.length > 0) {
        const victim = all[randomInteger(random, all.length)]!;
        if (victim.live) aborts++;
        core.abort(victim);
      } else for (const one of core.executePass(step).emitted) one.owner.push(...one.fresh);
      const problem = unaccounted(core, all);
      if (problem !== null) t.fail(`round ${round} step ${step}: ${problem}`);
    }
    drain(core);
    t.equal(core.pool.active, 0, 'nothing leaks');
    preemptions += core.totals.preemptions;
    for (const one of all.filter(one => one.state === 'finished').slice(0, 3))
      t.equal(one.owner.length, one.request.maxTokens);
  }
  t.ok(preemptions > 20 && aborts > 20, `${preemptions} preemptions, ${aborts} aborts`);
});

function unaccounted(core: EngineCore<Ids>, all: readonly Sequence[]): string | null {
  const held = new Map<number, number>();
  for (const one of all) {
    for (const block of one.blocks) held.set(block, (held.get(block) ?? 0) + 1);
    if (one.state !== 'running' && one.blocks.length > 0) return `a ${one.state} sequence holds blocks`;
    if (one.state === 'running' && one.blocks.length * 4 < one.computed)
      return 'computed tokens without a block';
  }
  const { blocks } = core.pool.snapshot();
  for (const [block, state] of blocks)
    if (state.refs !== (held.get(block) ?? 0)) return `block ${block}: ${state.refs} references`;
  if (core.pool.active !== held.size) return `active ${core.pool.active}, held ${held.size}`;
  return core.running > core.settings.maxNumSeqs ? 'too many run' : null;
}

t.test('200 engines under one virtual clock', async t => {
  const cores = Array.from({ length: 200 }, () => coreOf({ numGpuBlocks: 256 }));
  const answers = cores.flatMap((core, worker) =>
    [0, 1, 2, 3].map(at => core.add(requestOf(core, promptOf(300, worker * 7 + at), { maxTokens: 20 }), 0)),
  );
  const ends = cores.map(core => drain(core));
  t.equal(
    answers.reduce((sum, one) => sum + one.owner.length, 0),
    200 * 4 * 20,
  );
  t.equal(new Set(ends).size, 1, 'equal work takes equal virtual time');
});

t.test('several tokens per step: the same answers in fewer passes, also where the pool is too small', t => {
  const random = seededRandom(seed + 1);
  for (let round = 0; round < 20; round++) {
    const prompts = Array.from({ length: 6 }, () => promptOf(1 + randomInteger(random, 60), 100 * round));
    const run = (tokensPerStep: number) => {
      const core = coreOf({ tokensPerStep, blockSize: 4, numGpuBlocks: 40, maxModelLen: 120, eosRate: 0.02 });
      const sequences = prompts.map(prompt => core.add(requestOf(core, prompt, { maxTokens: 50 }), 0));
      let passes = 0;
      while (core.running + core.waiting > 0) {
        for (const one of core.executePass(0).emitted) one.owner.push(...one.fresh);
        passes++;
      }
      return { answers: sequences.map(one => [one.owner, one.finish]), passes, held: core.pool.active };
    };
    const [one, four] = [run(1), run(4)];
    t.same(four.answers, one.answers);
    t.ok(four.passes < one.passes);
    t.equal(four.held, 0);
  }
  t.end();
});
