// Promise: a thread's own decisions raise its look-ups to the shared part of the prompts, until they are due or pushed out.
import t from 'tap';
import { RecentPredictions } from '#millrace/router/index/recent-predictions.js';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const ENTRIES = 5;
const BLOCKS_MAX = 12;

/** A prompt that leaves the common trunk after `shared` blocks. */
const prompt = (shared: number, blocks: number, own: number): Uint32Array =>
  Uint32Array.from(
    { length: blocks * 2 },
    (_, at) => (at >> 1) + 1000 * (at >> 1 < shared ? 0 : own * 100 + shared) + (at & 1),
  );

t.test('equals a plain list of the latest prompts', async t => {
  t.comment(`SEED=${SEED}`);
  const random = seededRandom(SEED);
  const recent = new RecentPredictions(ENTRIES, BLOCKS_MAX);
  const holders = Uint32Array.of(4, 9, 77);
  let list: { holder: number; hashes: Uint32Array; expiresMs: number }[] = [];
  let raised = 0;
  for (let nowMs = 0; nowMs < 20_000; nowMs += 1) {
    const hashes = prompt(
      randomInteger(random, 16),
      1 + randomInteger(random, 16),
      1 + randomInteger(random, 3),
    );
    const holder = [4, 9, 77, 100][randomInteger(random, 4)]!;
    const expiresMs = nowMs + randomInteger(random, 6);
    recent.note(holder, hashes, hashes.length / 2, expiresMs);
    list = [...list, { holder, hashes: hashes.slice(0, BLOCKS_MAX * 2), expiresMs }].slice(-ENTRIES);

    const asked = prompt(
      randomInteger(random, 16),
      1 + randomInteger(random, 16),
      1 + randomInteger(random, 3),
    );
    const before = Uint32Array.from({ length: 6 }, () => randomInteger(random, 6));
    const depths = before.slice();
    recent.raise(asked, asked.length / 2, holders, 3, depths, nowMs);
    const wanted = before.map((depth, i) => {
      const own = list.filter(entry => entry.holder === holders[i % 3] && entry.expiresMs > nowMs);
      return Math.max(
        depth,
        ...own.map(entry => {
          const differs = entry.hashes.findIndex((word, at) => word !== asked[at]);
          return (differs < 0 ? entry.hashes.length : differs) >> 1;
        }),
      );
    });
    if (`${depths}` !== `${wanted}`) return t.equal(`${depths}`, `${wanted}`, `step ${nowMs}`);
    if (`${depths}` !== `${before}`) raised += 1;
  }
  t.ok(raised > 1000, `${raised} of 20000 look-ups were raised`);
});
