// Promise: a model is split when its workers have roles and can hand over to each other; otherwise its decode workers do all
// of it, and the operator is told why.
import t from 'tap';
import { loadConfig } from '#millrace/config.js';
import { readDisaggregation } from '#millrace/disagg-config.js';
import type { WorkerRole } from '#millrace/messages/disagg.js';
import type { WorkerView } from '#millrace/messages/records.js';
import { splitModel, splitOfConfig } from '#millrace/plane/disagg-models.js';

const view = (slot: number, role: WorkerRole, blockSize: number | null = 16, engine = 'vllm'): WorkerView => {
  const url = `http://w${slot}:1`;
  const workers = [{ url, role }, 'http://other:1'];
  const config = loadConfig({ policies: ['ttft'], tokenizers: [] }, { options: { workers } });
  const split = splitOfConfig(config.workers[0]!);
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

t.test('roles and protocols', async t => {
  t.same(splitModel('m', [view(0, 'both'), view(1, 'both')]), { view: null, notices: [] });
  t.match(view(0, 'prefill').split, { role: 'prefill', bootstrapHost: 'w0', bootstrapPort: 8998 });
  const pair = (engine: string) => [view(0, 'prefill', 16, engine), view(1, 'decode', 16, engine)];
  for (const [engine, protocol] of [
    ['vllm', 'nixl'],
    ['sglang', 'sglang-rooms'],
    ['trtllm', 'trtllm-context-first'],
  ] as const) {
    const { view: split, notices } = splitModel('m', pair(engine));
    t.match(split, { protocol, policy: 'cost' });
    t.match(notices, engine === 'sglang' ? [/every prompt to a prefill worker/] : []);
  }
  const mooncake = readDisaggregation({ protocol: 'mooncake' }, 'm');
  t.equal(splitModel('m', pair('vllm'), mooncake).view!.protocol, 'mooncake');
});

t.test('what does not fit together', async t => {
  const told = (workers: WorkerView[], protocol = 'auto'): string => {
    const { view: split, notices } = splitModel('m', workers, readDisaggregation({ protocol }, 'm'));
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
  t.match(told([view(0, 'prefill'), view(1, 'decode')], 'sglang-rooms'), /sglang-rooms is for sglang/);
  const smaller = splitModel('m', [view(0, 'prefill', 16), view(1, 'decode', 32), view(2, 'decode', null)]);
  t.equal(smaller.view!.protocol, 'nixl', 'NIXL takes smaller blocks of the prefill worker');
});
