// Promise: where prefill workers are reached for their KV is asked of them, as is the part that they were started for; an engine
// that comes again under another id is asked again, and one that does not answer is asked until it does.
import t from 'tap';
import type { RegisteredWorker } from '#millrace/discovery/registry.js';
import type { WorkerCapabilities } from '#millrace/engines/contract.js';
import type { WorkerSplit } from '#millrace/messages/disagg.js';
import { PeerFacts, SAYS_NOTHING } from '#millrace/plane/peer-facts.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { FaultGuard } from '#millrace/runtime/fault-guard.js';
import { createLogger } from '#millrace/runtime/logger.js';
import {
  COMPLETIONS,
  type FixtureOptions,
  jsonOf,
  MOCK_MODEL,
  type PlaneFixture,
  startPlane,
  TOKENIZER,
} from '../plane-fixture.js';

const ROLES = ['prefill', 'decode'] as const;
const TOKEN = 'a-token-of-operators';
const TINY = { tiny: true, numGpuBlocks: 128, blockSize: 16 } as const;
const ask = { model: MOCK_MODEL, prompt: 'river '.repeat(60), max_tokens: 4, stream: true };
const pulledBy = ({ mocks }: PlaneFixture): number => mocks.at(-1)!.connector!.pulls.pulled;

/** The part of the prefill worker, as the plane has it. */
async function partOf(plane: PlaneFixture): Promise<WorkerSplit> {
  const reply = await plane.get('/admin/workers', 'GET', { headers: { authorization: `Bearer ${TOKEN}` } });
  return jsonOf(reply).workers.find(({ url }: { url: string }) => url === plane.mocks[0]!.url).split;
}

/** A prefill and a decode worker, of which no more is configured than the engine leaves to it. */
const split = (engine: 'vllm' | 'sglang' | 'trtllm', protocol: string): FixtureOptions => ({
  mocks: ROLES.map(role => ({
    ...TINY,
    engine,
    disagg: {
      ...(protocol === 'mooncake' ? { connector: protocol } : {}),
      ...(engine === 'sglang' ? { role } : {}),
    },
  })),
  models: { [MOCK_MODEL]: { disaggregation: { policy: 'always', protocol } } },
  tokenizer: TOKENIZER,
  asked: true,
  adminToken: TOKEN,
  clock: 'real',
});

t.test('SGLang tells its part and its bootstrap port', async t => {
  const plane = await startPlane(t, split('sglang', 'sglang-rooms'));
  const reply = await plane.post(COMPLETIONS, ask);
  t.equal(reply.status, 200, reply.text);
  t.equal(pulledBy(plane), 1, 'handed over, and nothing but the URLs is configured');
  t.equal(await plane.metric(`millrace_worker_role{worker="${plane.mocks[0]!.url}",role="prefill"}`), 1);
  const { port } = plane.mocks[0]!.connector!.options.carrier;
  t.match(await partOf(plane), { role: 'prefill', bootstrapHost: '127.0.0.1', bootstrapPort: port });
});

t.test('TensorRT-LLM tells where its transceiver is', async t => {
  const plane = await startPlane(t, { ...split('trtllm', 'trtllm-generation-first'), roles: ROLES });
  const reply = await plane.post(COMPLETIONS, ask);
  t.equal(reply.status, 200, reply.text);
  t.equal(pulledBy(plane), 1);
  const { host, port } = plane.mocks[0]!.connector!.options.carrier;
  t.equal((await partOf(plane)).infoEndpoint, `http://${host}:${port}`);
});

t.test('Mooncake’s bootstrap server tells the id of its engine', async t => {
  const plane = await startPlane(t, { ...split('vllm', 'mooncake'), roles: ROLES });
  const { engineId } = plane.mocks[0]!.connector!;
  while ((await partOf(plane)).engineId !== engineId); // it is asked once the worker is ready
  const reply = await plane.post(COMPLETIONS, ask);
  t.equal(reply.status, 200, reply.text);
  t.equal(pulledBy(plane), 1);
});

t.test('a bootstrap server that is late or unclear, and an engine that comes again', async t => {
  const clock = new ManualClock();
  const log: string[] = [];
  const asked: string[] = [];
  let answer: () => Promise<{ status: number; body: string }> = () => Promise.reject(new Error('refused'));
  let changes = 0;
  const peers = new PeerFacts({
    ask: ({ origin, method, path }) => {
      asked.push(`${method} ${origin}${path}`);
      return answer();
    },
    clock,
    guard: new FaultGuard(error => t.fail(String(error))),
    logger: createLogger({ level: 'debug', format: 'text', write: line => log.push(line) }),
    limits: { probeDeadlineMs: 1000, probeBytesMax: 1000, probePeriodMs: 500 },
    onChange: () => {
      changes += 1;
    },
  });
  const worker = { slot: 3, generation: 1, url: 'http://w:1', rank: null } as RegisteredWorker;
  const facts = { version: '1.0' } as WorkerCapabilities;
  const server = { host: 'fd00::7', port: 8998 };
  const turn = () => new Promise(resolve => setImmediate(resolve));
  const look = async (status: number, body: string): Promise<string | null> => {
    answer = () => Promise.resolve({ status, body });
    clock.advance(500);
    await turn();
    return peers.says(3).engineId;
  };
  t.ok(peers.learn(worker, facts, server), 'the version is news');
  await turn();
  t.match(log, [/the id of an engine is not known.*fd00::7.*refused/]);
  for (const [status, body] of [
    [503, ''],
    [200, 'none'],
    [200, '{}'],
    [200, '{"0":{"engine_id":""}}'],
    [200, '{"0":{"engine_id":"a"},"1":{"engine_id":"b"}}'],
  ] as const)
    t.equal(await look(status, body), null, body);
  t.equal(changes, 0);
  t.equal(await look(200, '{"4":{"engine_id":"one"}}'), 'one');
  t.equal(asked.length, 7);
  t.same(new Set(asked), new Set(['GET http://[fd00::7]:8998/query']));
  t.equal(await look(200, '{"4":{"engine_id":"other"}}'), 'one', 'it is not asked for what it has said');
  t.equal(log.length, 1, 'one line for all of it');

  t.notOk(peers.learn(worker, facts, server), 'it comes again, and says the same at first');
  t.equal(peers.says(3).engineId, 'one');
  await turn();
  t.equal(peers.says(3).engineId, 'other');
  t.equal(changes, 2);
  t.same(peers.says(4), SAYS_NOTHING);

  const rank = { ...worker, rank: 1 };
  answer = () => Promise.resolve({ status: 200, body: '{"0":{"engine_id":"a"},"1":{"engine_id":"b"}}' });
  peers.learn(rank, facts, server);
  await turn();
  t.equal(peers.says(3).engineId, 'b', 'of its rank');
  answer = () => Promise.reject(new Error('refused'));
  peers.learn(rank, facts, server);
  peers.forget(3);
  await turn();
  const before = asked.length;
  clock.advance(5000);
  t.equal(asked.length, before, 'nobody is asked for a worker that has left');
  peers.stop();
});
