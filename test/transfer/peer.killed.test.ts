// Promise: a peer that is killed, whatever it was doing, is told as lost; every promise settles, every block, lease and
// descriptor comes back, and a block that is used anew never shows another's bytes. `npm run test:long` kills 1,000 peers on
// shm and on tcp and keeps the times in test/results/transfer-kills.json.
import { readdirSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import type { TransportName } from '#millrace/transfer/index.js';
import { machineFacts } from './machine-facts.js';
import { type Death, PHASES, ROLES, Survivor } from './survivor.js';
import { needs } from './two-agents.js';

const isLong = process.env.MILLRACE_TEST_LONG === '1';
const seed = Number(process.env.SEED ?? Date.now() % 2 ** 32);
const PEER_LOSS_MS = 1500;
const KILLS: [TransportName, number][] = isLong
  ? [
      ['shm', 1000],
      ['tcp', 1000],
      ['cma', 100],
    ]
  : [
      ['shm', 8],
      ['tcp', 8],
      ['cma', 8],
    ];
t.setTimeout(isLong ? 3_600_000 : 120_000);

const descriptors = (): number => readdirSync('/proc/self/fd').length;
const threads = (): number => readdirSync('/proc/self/task').length;

function percentile(sorted: readonly number[], p: number): number {
  return sorted[Math.max(0, Math.ceil((p / 100) * sorted.length) - 1)]!;
}

/** Null where none was: in a short run chance may leave a role out. */
function times(deaths: readonly Death[]): object | null {
  if (deaths.length === 0) return null;
  const sorted = deaths.map(({ ms }) => ms).sort((a, b) => a - b);
  const rounded = (ms: number): number => Number(ms.toFixed(2));
  return {
    kills: deaths.length,
    p50: rounded(percentile(sorted, 50)),
    p99: rounded(percentile(sorted, 99)),
    max: rounded(sorted.at(-1)!),
  };
}

function summary(deaths: readonly Death[]): object {
  const sum = (of: (death: Death) => number): number => deaths.reduce((total, death) => total + of(death), 0);
  return {
    ms: times(deaths),
    overMs: deaths.filter(({ ms }) => ms > PEER_LOSS_MS).length,
    transfers: { done: sum(d => d.done), lost: sum(d => d.lost) },
    connectsRefused: sum(d => d.refused),
    phases: Object.fromEntries(
      PHASES.map(phase => [phase, times(deaths.filter(death => death.phase === phase))]),
    ),
    roles: Object.fromEntries(ROLES.map(role => [role, times(deaths.filter(death => death.role === role))])),
  };
}

const results: Record<string, object> = {};
for (const [transport, kills] of KILLS) {
  t.test(`${kills} kills by ${transport}`, needs(transport), async t => {
    t.comment(`SEED=${seed}`);
    const random = seededRandom(seed);
    const alive = setInterval(() => undefined, 60_000);
    t.teardown(() => clearInterval(alive));
    const survivor = new Survivor(transport, random);
    const deaths: Death[] = [];
    let before = 0;
    let threadsBefore = 0;
    for (let i = 0; i < kills; i++) {
      // Each phase in turn, in a role by chance.
      const role = ROLES[randomInteger(random, ROLES.length)]!;
      deaths.push(await survivor.survive(PHASES[i % PHASES.length]!, role));
      // After the first ones, which open what stays open.
      if (i === 1) [before, threadsBefore] = [descriptors(), threads()];
    }
    t.ok(descriptors() <= before, `${descriptors()} descriptors after ${kills} kills, ${before} after two`);
    t.equal(threads(), threadsBefore, 'threads');
    await survivor.close();
    const facts = { ...summary(deaths), ...survivor.findings };
    t.comment(JSON.stringify(facts));
    t.same(
      survivor.findings,
      { foreignWords: 0, hung: 0 },
      'no word of somebody else, and nothing that hangs',
    );
    t.ok(
      kills < 100 || deaths.some(({ phase, lost }) => phase === 'in mid-copy' && lost > 0),
      'some died in mid-copy',
    );
    results[transport] = facts;
  });
}

t.test('the result', { skip: isLong ? false : 'of the long run' }, async () => {
  const result = {
    test: 'transfer-kills',
    ...machineFacts(),
    seed,
    peerLossMs: PEER_LOSS_MS,
    transports: results,
  };
  writeFileSync('test/results/transfer-kills.json', `${JSON.stringify(result, null, 2)}\n`);
});
