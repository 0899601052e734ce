// Promise: /metrics tells of prompts that were really handed over: as many as the engines themselves count, with times, reasons
// and help for each metric; and where the ids of routing came from.
import t from 'tap';
import { LocalEngines } from '#millrace/simulate/disagg/local-carrier.js';
import { COMPLETIONS, MOCK_MODEL, type PlaneFixture, startPlane, TOKENIZER } from '../plane-fixture.js';

const ROLES = ['prefill', 'prefill', 'decode', 'decode'] as const;
const REQUESTS = 6;
const FAMILIES = [
  ['millrace_disagg_decisions_total', 'counter'],
  ['millrace_handovers_total', 'counter'],
  ['millrace_prefill_fallbacks_total', 'counter'],
  ['millrace_routing_ids_total', 'counter'],
  ['millrace_prefill_duration_seconds', 'histogram'],
  ['millrace_handover_duration_seconds', 'histogram'],
  ['millrace_deferred_aborts', 'gauge'],
  ['millrace_deferred_aborts_total', 'counter'],
  ['millrace_worker_role', 'gauge'],
  ['millrace_prefill_queue_tokens', 'gauge'],
] as const;

const ask = (round: number, more: object = {}): object => ({
  model: MOCK_MODEL,
  prompt: `${round}: ${'river '.repeat(40 + round)}`,
  max_tokens: 4,
  ...more,
});

/** The four mocks of an engine; every prompt goes to a prefill worker where the policy is `always`. */
function startSplit(
  t: Parameters<typeof startPlane>[0],
  engine: 'vllm' | 'sglang',
  policy = 'always',
): Promise<PlaneFixture> {
  const engines = new LocalEngines();
  return startPlane(t, {
    mocks: ROLES.map(role => ({
      engine,
      tiny: true,
      numGpuBlocks: 256,
      blockSize: 16,
      disagg: engine === 'sglang' ? { role } : { engines },
    })),
    roles: ROLES,
    models: { [MOCK_MODEL]: { disaggregation: { policy } } },
    tokenizer: TOKENIZER,
    policy: 'ttft',
    clock: 'real',
  });
}

for (const [engine, protocol] of [
  ['vllm', 'nixl'],
  ['sglang', 'sglang-rooms'],
] as const)
  t.test(`real hand-overs, ${protocol}`, async t => {
    const plane = await startSplit(t, engine);
    const replies = await Promise.all(
      Array.from({ length: REQUESTS }, (_, round) => plane.post(COMPLETIONS, ask(round))),
    );
    t.same(new Set(replies.map(({ status }) => status)), new Set([200]));
    await plane.expectIdle(t);
    const taken = plane.mocks.reduce((sum, { connector }) => sum + connector!.pulls.pulled, 0);
    t.equal(taken, REQUESTS, 'the engines have handed them over');
    const model = `{model="${MOCK_MODEL}"}`;
    const expected = {
      [`millrace_handovers_total{protocol="${protocol}",outcome="handed_over"}`]: REQUESTS,
      'millrace_disagg_decisions_total{decision="split",reason="default"}': REQUESTS,
      'millrace_routing_ids_total{source="tokenizer"}': REQUESTS,
      [`millrace_handover_duration_seconds_count${model}`]: REQUESTS,
      [`millrace_prefill_duration_seconds_count${model}`]: REQUESTS,
      millrace_deferred_aborts: 0,
      [`millrace_worker_role{worker="${plane.mocks[0]!.url}",role="prefill"}`]: 1,
      [`millrace_worker_role{worker="${plane.mocks[3]!.url}",role="decode"}`]: 1,
      [`millrace_prefill_queue_tokens{worker="${plane.mocks[0]!.url}"}`]: 0,
    };
    for (const [series, value] of Object.entries(expected))
      t.equal(await plane.metric(series), value, series);
    t.ok((await plane.metric(`millrace_handover_duration_seconds_sum${model}`)) > 0);
    const { text } = await plane.get('/metrics');
    t.notMatch(text, /prefill_fallbacks_total\{[^}]*\} [1-9]/, 'no decode worker had to compute a prompt');
    t.notOk(text.includes(`millrace_prefill_queue_tokens{worker="${plane.mocks[3]!.url}"`));
    for (const [name, type] of FAMILIES) {
      t.match(text, new RegExp(`^# HELP ${name} \\S.{20,}$`, 'm'));
      t.ok(text.includes(`# TYPE ${name} ${type}\n`), `${name} is a ${type}`);
    }
  });

t.test('what stays where it is answered, and by whose ids it was routed', async t => {
  const plane = await startSplit(t, 'vllm', 'isl-bounding');
  const decided = (decision: string, reason: string): Promise<number> =>
    plane.metric(`millrace_disagg_decisions_total{decision="${decision}",reason="${reason}"}`);
  const ids = Array.from({ length: 200 }, (_, at) => 100 + at);
  await plane.post(COMPLETIONS, ask(0, { prompt: ids }));
  t.equal(await decided('split', 'default'), 1, 'nothing of it is cached');
  await plane.post(COMPLETIONS, ask(0, { n: 2 }));
  t.equal(await decided('local', 'not_splittable'), 1);
  t.equal(await plane.metric('millrace_routing_ids_total{source="client"}'), 1);
  t.equal(await plane.metric('millrace_routing_ids_total{source="tokenizer"}'), 1);
  for (const prefill of plane.mocks.slice(0, 2)) {
    const { url } = prefill;
    plane.plane.removeWorker(url);
  }
  await plane.post(COMPLETIONS, ask(1));
  t.equal(await decided('local', 'no_prefill'), 1);
});
