// Promise: sequences that wait for KV from elsewhere keep the scheduler's rules: no lost block, no lost token, no standstill.
import t from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { EngineCore } from '#millrace/simulate/engine-core.js';
import { resolveEngineSettings } from '#millrace/simulate/engine-settings.js';
import type { EngineSequence, LoadOutcome, SequenceHandover } from '#millrace/simulate/sequence.js';
import { KvPages } from '#millrace/simulate/tiny/kv-pages.js';
import { TinyModel } from '#millrace/simulate/tiny/tiny-model.js';
import { digestPrompt } from '#millrace/simulate/token-source.js';

const seed = Number(process.env.SEED ?? 20_261_126);
t.comment(`SEED=${seed}`);
const random = seededRandom(seed);
const drawable = { ids: Uint32Array.from({ length: 1500 }, (_, at) => 1000 + at), eosId: 9999 };

interface Owner {
  readonly ids: number[];
  readonly prompt: readonly number[];
}
type Sequence = EngineSequence<Owner>;

const never = (): never => {
  throw new Error('only who drives the core calls this');
};
const handoverOf = (keeps: boolean, pulls: boolean): SequenceHandover => ({
  keeps,
  pulls,
  queued: never,
  load: never,
  offer: never,
  aborted: never,
});

interface TinyCore {
  readonly core: EngineCore<Owner>;
  readonly pages: KvPages;
  add(prompt: readonly number[], maxTokens: number, handover?: SequenceHandover): Sequence;
  /** One pass; the sequences that are to be loaded. */
  step(): readonly Sequence[];
  stuck: boolean;
}

function tinyCore(numGpuBlocks: number, tokensPerStep: number): TinyCore {
  const limits = { maxNumSeqs: 5, maxNumBatchedTokens: 24, tokensPerStep };
  const settings = resolveEngineSettings({ numGpuBlocks, blockSize: 4, ...limits });
  const pages = new KvPages(numGpuBlocks, 4);
  const core = new EngineCore<Owner>(
    settings,
    drawable,
    null,
    new TinyModel({ ...drawable, eosRate: 0, seed: 0 }, pages),
  );
  const engine: TinyCore = {
    core,
    pages,
    stuck: false,
    add: (prompt, maxTokens, handover) =>
      core.add(
        {
          prompt: digestPrompt(prompt, 4),
          maxTokens,
          minTokens: 0,
          ignoreEos: true,
          stopTokenIds: [],
          choice: 0,
          owner: { ids: [], prompt },
          ...(handover === undefined ? {} : { handover }),
        },
        0,
      ),
    step: () => {
      const { emitted, loading, stuck } = core.executePass(0);
      engine.stuck = stuck;
      for (const { owner, fresh } of emitted) owner.ids.push(...fresh);
      return [...loading];
    },
  };
  return engine;
}

/** The answer and the pages of an engine that has computed the prompt alone. */
function reference(prompt: readonly number[], maxTokens: number): { ids: number[]; pages: Uint8Array[] } {
  const { core, pages, add, step } = tinyCore(200, 1);
  const sequence = add(prompt, maxTokens, handoverOf(true, false));
  while (core.running + core.waiting > 0) step();
  return { ids: sequence.owner.ids, pages: sequence.blocks.map(block => pages.bytesOf(block)) };
}

/** What the other engine sends. */
function fill(sequence: Sequence, pages: KvPages): void {
  const { pages: sent } = reference(sequence.owner.prompt, 1);
  for (let at = sequence.published; at < sequence.blocks.length; at++)
    pages.bytesOf(sequence.blocks[at]!).set(sent[at]!);
}

/** What a transfer that broke leaves behind. */
function scribble(sequence: Sequence, pages: KvPages): void {
  for (const block of sequence.blocks.slice(sequence.published)) pages.bytesOf(block).fill(0x55);
}

function collectPins(all: readonly Sequence[], pinned: number[][]): void {
  for (const { state, blocks, request } of all) {
    if (state === 'finished' && request.handover?.keeps === true && blocks.length > 0)
      pinned.push(blocks.splice(0));
  }
}

function unaccounted(core: EngineCore<Owner>, all: readonly Sequence[], pinned: number[][]): string | null {
  const refs = new Map<number, number>();
  const count = (block: number): void => void refs.set(block, (refs.get(block) ?? 0) + 1);
  all.flatMap(one => one.blocks).forEach(count);
  pinned.flat().forEach(count);
  const { blocks } = core.pool.snapshot();
  for (const [block, state] of blocks)
    if (state.refs !== (refs.get(block) ?? 0)) return `block ${block} has ${state.refs} references`;
  if (core.pool.active !== refs.size) return `active ${core.pool.active}, held ${refs.size}`;
  return core.pool.pinned === new Set(pinned.flat()).size ? null : `${core.pool.pinned} pinned`;
}

t.test('random arrivals, loads, failures, aborts and pins', async t => {
  const seen = { loaded: 0, recompute: 0, failed: 0, aborted: 0, preempted: 0, stuck: 0 };
  for (let round = 0; round < 12; round++) {
    const engine = tinyCore(14 + randomInteger(random, 10), 1 + randomInteger(random, 4));
    const { core, pages } = engine;
    const all: Sequence[] = [];
    const loading: Sequence[] = [];
    const pinned: number[][] = [];
    const settle = (sequence: Sequence): void => {
      const outcome = (['loaded', 'loaded', 'recompute', 'failed'] as const)[randomInteger(random, 4)]!;
      seen[sequence.state === 'aborted' ? 'aborted' : outcome]++;
      if (outcome === 'loaded' && sequence.live) fill(sequence, pages);
      else scribble(sequence, pages);
      core.loaded(sequence, outcome satisfies LoadOutcome);
    };
    for (let step = 0; step < 120; step++) {
      const what = random();
      if (what < 0.2) {
        const prompt = Array.from({ length: 1 + randomInteger(random, 30) }, (_, at) =>
          at < 12 ? at : randomInteger(random, 1000),
        );
        const handover = handoverOf(random() < 0.2, random() < 0.6);
        all.push(engine.add(prompt, 1 + randomInteger(random, 12), handover));
      } else if (what < 0.25 && all.length > 0) core.abort(all[randomInteger(random, all.length)]!);
      else if (what < 0.4 && loading.length > 0)
        settle(loading.splice(randomInteger(random, loading.length), 1)[0]!);
      else if (what < 0.45 && pinned.length > 0) core.pool.unpin(pinned.pop()!);
      else {
        loading.push(...engine.step());
        if (engine.stuck && core.waiting > 0) seen.stuck++;
        collectPins(all, pinned);
      }
      const problem = unaccounted(core, all, pinned);
      if (problem !== null) t.fail(`round ${round} step ${step}: ${problem}`);
    }
    for (let turn = 0; core.running + core.waiting + loading.length > 0; turn++) {
      if (turn > 5000) return t.fail(`round ${round} stands still`);
      loading.push(...engine.step());
      collectPins(all, pinned);
      for (const sequence of loading.splice(0)) settle(sequence);
      for (const blocks of pinned.splice(0)) core.pool.unpin(blocks);
    }
    collectPins(all, pinned);
    for (const blocks of pinned.splice(0)) core.pool.unpin(blocks);
    seen.preempted += core.totals.preemptions;
    t.same([core.pool.active, core.pool.pinned], [0, 0], 'nothing is held');
    for (const { state, owner, request } of all.filter(one => one.state === 'finished')) {
      const { ids } = reference(owner.prompt, request.maxTokens);
      if (owner.ids.join() !== ids.join()) t.fail(`round ${round}: a ${state} answer is wrong`);
    }
  }
  t.ok(Math.min(...Object.values(seen)) > 0, JSON.stringify(seen));
});
