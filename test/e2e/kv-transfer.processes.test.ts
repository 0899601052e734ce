// Promise: three commands make a service whose prompts are computed in one process and answered in another, with KV carried by
// the transfer engine, and its tokens are those of one process; the death of the prefill process in a transfer disturbs no answer.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { randomInteger, seededRandom } from '#millrace/runtime/random.js';
import { Serve, until } from '../cli/serve-process.js';
import { needsOf, startTiny } from '../simulate/disagg-probe.js';
import { type EngineProcess, kill, startProcess } from '../simulate/engine-process.js';
import { type Json, postJson, postSse } from '../simulate/http-probe.js';

const seed = Number(process.env.SEED ?? 20_261_128);
t.comment(`SEED=${seed}`);
const random = seededRandom(seed);
const EXAMPLE = new URL('../../../examples/kv-transfer.yaml', import.meta.url);
const completions = '/v1/completions';

/** Words, so that the tokenizer makes prompts of any length of them. */
const promptOf = (words: number): string =>
  Array.from({ length: words }, () => `word${randomInteger(random, 5000)}`).join(' ');

/** The example, over these engines. */
function configOf(t: Test, prefill: EngineProcess, decode: EngineProcess): string {
  const folder = mkdtempSync(join(tmpdir(), 'kv-transfer-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const text = readFileSync(EXAMPLE, 'utf8')
    .replace(/^( +- \{ url: )http:\/\/127\.0\.0\.1:9001/m, `$1${prefill.url}`)
    .replace(/^( +- \{ url: )http:\/\/127\.0\.0\.1:9002/m, `$1${decode.url}`);
  t.ok(text.includes(`{ url: ${prefill.url}, role: prefill }`) && text.includes(`{ url: ${decode.url}, `));
  const path = join(folder, 'kv-transfer.yaml');
  writeFileSync(path, text);
  return path;
}

const transferOf = async ({ side }: EngineProcess): Promise<Json> => (await fetch(`${side}/transfer`)).json();

async function expectNothingLeft(t: Test, engine: EngineProcess): Promise<void> {
  await until('its blocks are back', async () => (await transferOf(engine)).leases === 0);
  const { blocks, inFlight } = await transferOf(engine);
  t.match({ inFlight, ...blocks }, { inFlight: 0, pinned: 0, quarantine: 0, reserved: 0 });
}

async function handovers(serve: Serve, outcome: string): Promise<number> {
  const page = await (await fetch(`${serve.listening.url}/metrics`)).text();
  const line = new RegExp(`^millrace_handovers_total\\{protocol="nixl",outcome="${outcome}"\\} (\\d+)$`, 'm');
  return Number(line.exec(page)?.[1] ?? 0);
}

for (const [way, blockSize, orders] of [
  ['shm', 8, ['nhd', 'nhd']],
  ['tcp', 64, ['nhd', 'hnd']],
] as const)
  t.test(`over ${way}, blocks of ${blockSize}, ${orders.join(' to ')}`, needsOf(way), async t => {
    const shape = ['--block-size', String(blockSize), '--blocks', '256'];
    const by = ['--kv-transfer', 'millrace', '--kv-transport', way];
    const [alone, ...engines] = await Promise.all([
      startTiny(t, { blockSize, numGpuBlocks: 256 }),
      ...orders.map(order => startProcess(t, ...shape, ...by, '--kv-layout', order)),
    ]);
    const [p, d] = engines as [EngineProcess, EngineProcess];
    const serve = await Serve.start(t, ['--json', '--config', configOf(t, p, d)]);
    const { url } = serve.listening;
    await until('both workers are ready', async () => (await serve.health()).body.workers.ready === 2);
    t.match(await serve.health(), { status: 200, body: { status: 'ok' } });
    for (let round = 0; round < 8; round++) {
      const body = { model: 'mock-model', prompt: promptOf(1 + randomInteger(random, 120)), max_tokens: 20 };
      const wanted = (await postJson(alone.url, completions, body)).json.choices[0].text;
      if (round % 2 === 0) t.equal((await postJson(url, completions, body)).json.choices[0].text, wanted);
      else {
        const { frames, done } = await postSse(url, completions, body);
        t.equal(frames.map((frame: Json) => frame.choices[0]?.text ?? '').join(''), wanted);
        t.ok(done);
      }
    }
    t.equal(await handovers(serve, 'handed_over'), 8);
    const { agent } = await transferOf(d);
    t.match(agent, { peers: 1, transports: { [way]: { failed: 0 } } });
    t.ok(agent.transports[way].done >= 7 && agent.transports[way].bytesRead > 7 * 256, 'its bytes went so');
    for (const engine of [p, d]) await expectNothingLeft(t, engine);
  });

t.test('prefill is killed with half of a hand-over done', needsOf('tcp'), async t => {
  const by = ['--kv-transfer', 'millrace', '--kv-transport', 'tcp'];
  const [alone, p, d] = await Promise.all([
    startTiny(t),
    startProcess(t, ...by, '--faults', 'handoverStall=1'),
    startProcess(t, ...by),
  ]);
  const serve = await Serve.start(t, ['--json', '--config', configOf(t, p, d)]);
  await until('both workers are ready', async () => (await serve.health()).body.workers.ready === 2);
  const body = { model: 'mock-model', prompt: promptOf(60), max_tokens: 20 };
  const answer = postJson(serve.listening.url, completions, body);
  await until('half of it is over', async () => (await transferOf(d)).agent.transports.tcp.done === 1);
  t.equal((await transferOf(p)).leases, 1, 'and the rest is waited for');
  await kill(p.child);
  const { status, json } = await answer;
  t.equal(status, 200, JSON.stringify(json));
  t.equal(json.choices[0].text, (await postJson(alone.url, completions, body)).json.choices[0].text);
  t.equal(await handovers(serve, 'handed_over'), 0);
  await expectNothingLeft(t, d);
});
