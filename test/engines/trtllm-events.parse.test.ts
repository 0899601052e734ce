// Promise: TensorRT-LLM's KV cache events are read with every bit of their hashes, and become just those stores and removals
// that a prompt can be matched with.
import t from 'tap';
import { TrtllmEventTranslator } from '#millrace/engines/trtllm-event-translator.js';
import { parseTrtllmEvents } from '#millrace/engines/trtllm-events.js';
import type { EventWriter } from '#millrace/router/events/contract.js';
import { seededRandom } from '#millrace/runtime/random.js';

const BIG = '18446744073709551615';
const tokens = (...ids: number[]): string =>
  `[${ids.map(id => `{"type":"unique_token","token_id":${id},"token_extra_id":0}`)}]`;
const block = (hash: string, ids: number[], level = 0): string =>
  `{"type":"stored_block","block_hash":${hash},"tokens":${tokens(...ids)},"cache_level":${level},"priority":35,"mm_keys":[]}`;
const plain = { isPlain: true, adapter: null, adapterId: null, salt: null };
const event = (id: number, data: string, more = ''): string =>
  `{"event_id":${id},"data":${data},"window_size":4096${more}}`;

t.test('all types, with hashes beyond 2^53', t => {
  const text = `[${[
    event(0, '{"type":"created","num_blocks_per_cache_level":[100,0]}'),
    event(1, `{"type":"stored","parent_hash":null,"blocks":[${block(BIG, [1, 2])},${block('7', [3], 1)}]}`),
    event(2, `{"type":"stored","parent_hash":${BIG},"blocks":[${block('"00ffab"', [4294967295])}]}`),
    event(3, `{"type":"removed","block_hashes":[${BIG},9007199254740993,"00ffab",-1]}`),
    event(
      4,
      `{"type":"updated","block_hash":9007199254740993,"cache_level":{"type":"event_diff","new_value":1,"old_value":0},"priority":null}`,
    ),
    event(5, '{"type":"updated","block_hash":1,"cache_level":null}', ',"attention_dp_rank":3'),
    event(6, '{"type":"frozen","x":12345678901234567890.5}'),
  ].join(', ')}]`;
  const events = parseTrtllmEvents(text);
  t.same(
    events.map(({ id }) => id),
    [0, 1, 2, 3, 4, 5, 6],
  );
  t.same(
    events.map(({ change }) => change),
    [
      { type: 'created', blocksPerCacheLevel: [100, 0] },
      {
        type: 'stored',
        parent: null,
        blocks: [
          { ...plain, hash: 18446744073709551615n, tokens: [1, 2], cacheLevel: 0 },
          { ...plain, hash: 7n, tokens: [3], cacheLevel: 1 },
        ],
      },
      {
        type: 'stored',
        parent: 18446744073709551615n,
        blocks: [{ ...plain, hash: '00ffab', tokens: [4294967295], cacheLevel: 0 }],
      },
      {
        type: 'removed',
        hashes: [18446744073709551615n, 9007199254740993n, '00ffab', 18446744073709551615n],
      },
      { type: 'updated', hash: 9007199254740993n, cacheLevel: 1 },
      { type: 'updated', hash: 1n, cacheLevel: null },
      { type: 'unknown' },
    ],
  );
  t.match(events[5], { windowSize: 4096, rank: 3 });
  t.match(events[0], { rank: 0 });
  t.same(parseTrtllmEvents('[]'), []);
  t.end();
});

t.test('every 64-bit hash comes through, and strings are left alone', t => {
  const seed = Number(process.env.SEED ?? Date.now() % 1e9);
  t.comment(`SEED=${seed}`);
  const random = seededRandom(seed);
  for (let round = 0; round < 2000; round++) {
    const bits = Math.floor(random() * 65);
    const high = BigInt(Math.floor(random() * 2 ** 32));
    const hash = ((high << 32n) | BigInt(Math.floor(random() * 2 ** 32))) >> BigInt(64 - bits);
    const odd = random() < 0.5 ? '"\\"12345678901234567890,"' : '"a, 12345678901234567890 ,b"';
    const text = `[${event(round, `{"type":"removed","block_hashes":[${hash}, ${odd}]}`)}]`;
    const { change } = parseTrtllmEvents(text)[0]!;
    if (change.type !== 'removed' || change.hashes[0] !== hash || change.hashes[1] !== JSON.parse(odd))
      t.fail(`hash ${hash}`);
  }
  t.end();
});

t.test('windows, ranks, and what makes a block another one than its tokens', t => {
  const windows = parseTrtllmEvents(
    '[{"event_id":1,"data":{"type":"x"},"window_size":512},{"event_id":2,"data":{"type":"x"}}]',
  );
  t.same(
    windows.map(one => [one.windowSize, one.rank]),
    [
      [512, 0],
      [null, 0],
    ],
  );
  const blocksOf = (...blocks: string[]) => {
    const { change } = parseTrtllmEvents(
      `[${event(1, `{"type":"stored","parent_hash":null,"blocks":[${blocks}]}`)}]`,
    )[0]!;
    return change.type === 'stored' ? change.blocks : [];
  };
  const withKeys = (keys: string): string =>
    `{"type":"stored_block","block_hash":1,"tokens":${tokens(1, 2)},${keys}}`;
  const digest = '{"type":"stored_block","block_hash":1,"tokens":[{"token_id":"ab","token_extra_id":0},7]}';
  const extra = '{"type":"stored_block","block_hash":1,"tokens":[{"token_id":1,"token_extra_id":5}]}';
  t.same(
    blocksOf(
      withKeys('"mm_keys":[]'),
      withKeys('"mm_keys":[["ab",0]]'),
      digest,
      extra,
      withKeys('"lora_name":"a"'),
      withKeys('"lora_id":3'),
      withKeys('"cache_salt":"s"'),
    ).map(({ isPlain, adapter, adapterId, salt }) => [isPlain, adapter, adapterId, salt]),
    [
      [true, null, null, null],
      [false, null, null, null],
      [false, null, null, null],
      [false, null, null, null],
      [true, 'a', null, null],
      [true, null, 3, null],
      [true, null, null, 's'],
    ],
  );
  t.end();
});

t.test('what is no list of events is refused', t => {
  const bad = [
    '',
    '{}',
    '[1]',
    '[{"event_id":1}]',
    '[{"event_id":-1,"data":{}}]',
    `[${event(1, '{"type":"stored","blocks":null}')}]`,
    `[${event(1, '{"type":"stored","blocks":[1]}')}]`,
    `[${event(1, `{"type":"stored","blocks":[${block('1', [-1])}]}`)}]`,
    `[${event(1, `{"type":"stored","blocks":[${block('1.5', [1])}]}`)}]`,
    `[${event(1, '{"type":"removed","block_hashes":[null]}')}]`,
    `[${event(1, '{"type":"updated"}')}]`,
    `[${event(1, '{"type":"created","num_blocks_per_cache_level":["a"]}')}]`,
    '[{"event_id":1,"data":{"type":"x"}}',
  ];
  for (const text of bad) {
    t.throws(
      () => parseTrtllmEvents(text),
      { code: 'MILLRACE_WORKER_PROTOCOL', message: /kv_cache_events/ },
      text,
    );
  }
  t.end();
});

/** What a translator writes for events, one line each. */
function translated(blockSize: number | null, ...texts: string[]): string[] {
  const lines: string[] = [];
  const writer: EventWriter = {
    store: ({ parent, blocks, blockSize: size, adapter, adapterId, salt }) =>
      lines.push(
        `store ${parent} ${blocks.map(({ hash, tokens: ids }) => `${hash}:${ids}`).join(' ')} (${size} ${adapter} ${adapterId} ${salt})`,
      ),
    remove: hashes => lines.push(`remove ${hashes.join(' ')}`),
    clear: () => lines.push('clear'),
  };
  const translator = new TrtllmEventTranslator(blockSize);
  for (const one of parseTrtllmEvents(`[${texts}]`)) translator.write(one, writer);
  return lines;
}

t.test('what a prompt can be matched with: full blocks of the largest window, without media', t => {
  const stored = (parent: string, ...blocks: string[]): string =>
    `{"type":"stored","parent_hash":${parent},"blocks":[${blocks}]}`;
  const inWindow = (size: number, data: string): string =>
    `{"event_id":1,"data":${data},"window_size":${size}}`;
  const removed = '{"type":"removed","block_hashes":[1,2]}';
  const created = '{"type":"created","num_blocks_per_cache_level":[9,0]}';
  const full = (hash: number, more = ''): string =>
    `{"block_hash":${hash},"tokens":${tokens(hash, 2)},"cache_level":1${more}}`;
  const partial = '{"block_hash":5,"tokens":[7]}';
  t.same(
    translated(2, event(1, stored('null', full(1), full(2), partial, full(3))), event(2, removed)),
    ['store null 1:1,2 2:2,2 (2 null null null)', 'remove 1 2'],
    'a partial block ends the chain; a block in host memory is there',
  );
  t.same(translated(2, event(1, stored('4', full(1), full(2, ',"mm_keys":[["ab",0]]'), full(3)))), [
    'store 4 1:1,2 (2 null null null)',
  ]);
  t.same(translated(2, event(1, stored('null', full(1, ',"lora_name":"a","lora_id":2,"cache_salt":"s"')))), [
    'store null 1:1,2 (2 a 2 s)',
  ]);
  t.same(
    translated(
      null,
      event(1, stored('null', partial)),
      event(2, stored('null', full(1), partial)),
      event(3, stored('1', full(2))),
    ),
    ['store null 1:1,2 (2 null null null)', 'store 1 2:2,2 (2 null null null)'],
    'without a block size, a store of several blocks says it',
  );
  t.same(
    translated(
      2,
      inWindow(64, created),
      inWindow(64, stored('null', full(1))),
      inWindow(512, stored('null', full(2))),
      inWindow(64, stored('null', full(3))),
      inWindow(64, removed),
      inWindow(512, removed),
      inWindow(512, created),
      inWindow(512, created),
    ),
    [
      'store null 1:1,2 (2 null null null)',
      'clear',
      'store null 2:2,2 (2 null null null)',
      'remove 1 2',
      'clear',
    ],
  );
  const move =
    '{"type":"updated","block_hash":1,"cache_level":{"new_value":1,"old_value":0},"priority":null}';
  t.same(translated(2, event(1, move), event(2, '{"type":"frozen"}'), event(3, stored('null'))), []);
  t.end();
});
