// Promise: a model is split when its workers have roles and can hand over to each other; otherwise its decode workers do all
// of it, and the operator is told why, with both values. What the workers say of themselves fills in the configuration.
import t from 'tap';
import { loadConfig } from '#millrace/config.js';
import { readDisaggregation } from '#millrace/disagg-config.js';
import type { HandoverFacts } from '#millrace/engines/contract.js';
import type { WorkerRole } from '#millrace/messages/disagg.js';
import type { WorkerView } from '#millrace/messages/records.js';
import { splitModel, splitOfWorker } from '#millrace/plane/disagg-models.js';
import { type PeerSays, SAYS_NOTHING } from '#millrace/plane/peer-facts.js';
import type { WorkerOptions } from '#millrace/worker-config.js';

const configOf = (options: WorkerOptions) =>
  loadConfig({ policies: ['ttft'], tokenizers: [] }, { options: { workers: [options, 'http://other:1'] } })
    .workers[0]!;

const view = (slot: number, role: WorkerRole, blockSize: number | null = 16, engine = 'vllm'): WorkerView => {
  const url = `http://w${slot}:1`;
  const split = splitOfWorker(configOf({ url, role }), SAYS_NOTHING);
  return {
    slot,
    generation: 1,
    url,
    rank: null,
    engine,
    models: [{ id: 'm', contextLength: null }],
    blockSize,
    totalBlocks: null,
    returnsTokenIds: true,
    foreignIds: [],
    ...(split === undefined ? {} : { split }),
  };
};
const saying = (version: string | null, handover: Partial<HandoverFacts> = {}): PeerSays => ({
  version,
  handover: { ...SAYS_NOTHING.handover, ...handover },
  engineId: null,
});
const alike = (): PeerSays => saying('1.0');
/** What the workers say, by slot. */
const bySlot =
  (...said: PeerSays[]) =>
  ({ slot }: WorkerView): PeerSays =>
    said[slot]!;
const pair = (engine = 'vllm'): WorkerView[] => [
  view(0, 'prefill', 16, engine),
  view(1, 'decode', 16, engine),
];

t.test('roles and protocols', async t => {
  t.same(splitModel('m', [view(0, 'both'), view(1, 'both')], alike), { view: null, notices: [] });
  t.match(view(0, 'prefill').split, { role: 'prefill', bootstrapHost: 'w0', bootstrapPort: 8998 });
  for (const [engine, protocol] of [
    ['vllm', 'nixl'],
    ['sglang', 'sglang-rooms'],
    ['trtllm', 'trtllm-context-first'],
  ] as const) {
    const { view: split, notices } = splitModel('m', pair(engine), alike);
    t.match(split, { protocol, policy: 'cost' });
    t.match(notices, engine === 'sglang' ? [/every prompt to a prefill worker/] : []);
    t.equal(notices.length, engine === 'sglang' ? 1 : 0);
  }
  const mooncake = readDisaggregation({ protocol: 'mooncake' }, 'm');
  t.equal(splitModel('m', pair(), alike, mooncake).view!.protocol, 'mooncake');
});

t.test('what does not fit together', async t => {
  const told = (
    workers: WorkerView[],
    protocol = 'auto',
    says = alike as (worker: WorkerView) => PeerSays,
  ) => {
    const config = readDisaggregation({ protocol }, 'm');
    const { view: split, notices } = splitModel('m', workers, says, config);
    t.equal(split!.protocol, null);
    return notices.join('\n');
  };
  t.match(
    told([view(0, 'prefill', 32), view(1, 'decode', 16)]),
    /w0:1 has 32 tokens per block, and .*w1:1 16; at most/,
  );
  t.match(told([view(0, 'prefill', 16), view(1, 'decode', 32)], 'mooncake'), /they must be equal/);
  t.match(
    told([view(0, 'prefill', 16), view(1, 'decode', 16, 'sglang')]),
    /nixl is for vllm, and .*w1:1 is sglang/,
  );
  t.match(told([view(0, 'prefill', 16, 'other'), view(1, 'decode', 16, 'other')]), /other has no protocol/);
  t.match(told(pair(), 'sglang-rooms'), /sglang-rooms is for sglang/);
  const smaller = splitModel(
    'm',
    [view(0, 'prefill', 16), view(1, 'decode', 32), view(2, 'decode', null)],
    alike,
  );
  t.equal(smaller.view!.protocol, 'nixl', 'NIXL takes smaller blocks of the prefill worker');

  const versions = bySlot(saying('0.11.0'), saying('0.11.1'));
  t.match(
    told(pair(), 'nixl', versions),
    /decode stay together on .*: http:\/\/w0:1 is version 0\.11\.0, and http:\/\/w1:1 0\.11\.1/,
  );
  const types = bySlot(saying('1.0', { kvDtype: 'fp8_e4m3' }), saying('1.0', { kvDtype: 'bfloat16' }));
  t.match(told(pair(), 'auto', types), /w0:1 keeps its KV as fp8_e4m3, and .*w1:1 as bfloat16/);
  const roles = bySlot(saying('1.0', { role: 'decode' }), saying('1.0', { role: 'decode' }));
  t.match(
    told(pair('sglang'), 'auto', roles),
    /cannot be served, as decode workers of sglang compute no prompts: .*w0:1 has the role prefill, and was started for decode/,
  );
});

t.test('what fits together, and is to be looked at', async t => {
  const noticed = (workers: WorkerView[], says: (worker: WorkerView) => PeerSays, protocol = 'auto') => {
    const config = readDisaggregation({ protocol, policy: 'always' }, 'm');
    const { view: split, notices } = splitModel('m', workers, says, config);
    t.not(split!.protocol, null);
    return notices;
  };
  const versions = bySlot(saying('1.0'), saying('1.1'));
  for (const [engine, protocol] of [
    ['vllm', 'mooncake'],
    ['sglang', 'sglang-rooms'],
    ['trtllm', 'trtllm-generation-first'],
  ] as const)
    t.match(noticed(pair(engine), versions, protocol), [
      /^model "m": http:\/\/w0:1 is version 1\.0, and http:\/\/w1:1 1\.1; they should be equal$/,
    ]);
  const unknown = bySlot(saying('1.0'), saying(null));
  t.match(noticed(pair(), unknown), [
    /^model "m": http:\/\/w1:1 does not tell its version: .* cannot be checked$/,
  ]);
  const lengths = pair().map((worker, at) => ({
    ...worker,
    models: [{ id: 'm', contextLength: at === 0 ? 4096 : 8192 }],
  }));
  t.match(noticed(lengths, alike), [
    /w0:1 takes 4096 tokens, and http:\/\/w1:1 8192; the smaller number counts$/,
  ]);
  t.match(noticed([view(0, 'prefill')], alike), [/it has prefill workers, and none that answers$/]);
  t.same(
    splitModel('m', [view(0, 'prefill')], alike, undefined, false).notices,
    [],
    'others are on their way up',
  );
  const types = bySlot(saying('1.0', { kvDtype: 'auto' }), saying('1.0', { kvDtype: 'bfloat16' }));
  t.same(noticed(pair(), types), [], 'auto is the type of the model');
});

t.test('what a worker says of itself, and what the configuration says before it', async t => {
  const says: PeerSays = {
    version: '1.0',
    handover: { role: 'prefill', kvDtype: null, bootstrapPort: 9001, infoEndpoint: 'http://told:1' },
    engineId: 'told',
  };
  const url = 'http://w:1';
  const told = { role: 'prefill', bootstrapHost: 'w', bootstrapPort: 9001 };
  t.same(splitOfWorker(configOf({ url }), says), {
    ...told,
    engineId: 'told',
    infoEndpoint: 'http://told:1',
  });
  const set = {
    bootstrap: 'b:9002',
    kvEngineId: 'set',
    kvInfoEndpoint: 'http://set:1',
    role: 'decode' as const,
  };
  t.same(splitOfWorker(configOf({ url, ...set }), says), {
    role: 'decode',
    bootstrapHost: 'b',
    bootstrapPort: 9002,
    engineId: 'set',
    infoEndpoint: 'http://set:1',
  });
  t.equal(splitOfWorker(configOf({ url }), SAYS_NOTHING), undefined);
});
