// Promise: after the KV events of a real vLLM server, the index says exactly what that server reported as cached.
import { readFileSync } from 'node:fs';
import t, { type Test } from 'tap';
import { IndexApplier } from '#millrace/router/events/applier.js';
import { createEventDecoder } from '#millrace/router/events/decoder.js';
import { createNativeDecoder } from '#millrace/router/events/native-decoder.js';
import { createHashers } from '#millrace/router/hashing/block-hasher.js';
import { createSimpleIndex } from '#millrace/router/index/simple-index.js';
import type { Addon } from '#millrace/runtime/addon.js';
import { addonStatus, loadAddon } from '#millrace/runtime/addon.js';

interface Golden {
  readonly source: string;
  readonly blockSize: number;
  /** Payloads of the batches from sequence 0 on, base64. */
  readonly payloads: readonly string[];
  /** In order; `cached` is the engine's own count for a request that was sent after `framesBefore` batches. */
  readonly requests: readonly {
    readonly prompt: readonly number[];
    readonly salt: string;
    readonly framesBefore: number;
    readonly cached: number;
  }[];
}

const HOLDER = 7;

async function compare(t: Test, golden: Golden, addon: Addon | null): Promise<void> {
  const { blockSize, payloads, requests } = golden;
  const index = createSimpleIndex({ blocksMax: 10_000, predictionsMax: 16 });
  const hashers = await createHashers(addon);
  const applier = new IndexApplier({
    writer: index,
    decoder: addon === null ? await createEventDecoder() : createNativeDecoder(addon),
    hashers,
    residency: { add() {}, remove() {}, route() {}, tend() {} },
    log: { warn: message => t.fail(message) },
    now: () => 0,
    onBlockSize: (_, learned) => t.equal(learned, blockSize),
  });
  const facts = { generation: 1, blockSize: null, totalBlocks: 72, hasEvents: true, name: 'vllm' };
  applier.addHolder(HOLDER, facts);
  let applied = 0;
  for (const [at, { prompt, salt, framesBefore, cached }] of requests.entries()) {
    while (applied < framesBefore) applier.apply(HOLDER, Buffer.from(payloads[applied++]!, 'base64'));
    const ids = Uint32Array.from(prompt);
    const blocks = Math.floor(ids.length / blockSize);
    const hashes = new Uint32Array(2 * blocks);
    hashers.of('', salt).hashAfter(null, ids, 0, blocks, blockSize, null, hashes);
    const depths = new Uint32Array(2);
    index.lookup(hashes, blocks, Uint32Array.of(HOLDER), 1, depths);
    // The engine computes at least the last token again, and it computes whole blocks.
    const most = Math.floor((ids.length - 1) / blockSize);
    // The cache was reset before the last two requests, which an idle vLLM tells with the batch after the next request.
    const isAfterReset = at === requests.length - 2;
    if (!isAfterReset) t.equal(Math.min(depths[0]!, most) * blockSize, cached, `request ${at}`);
  }
  t.ok(applier.counters.removedBlocks > 0, 'blocks were evicted');
  t.ok(applier.counters.clears > 0, 'and the cache was reset');
}

for (const form of ['int', 'bytes']) {
  const path = new URL(`../../../../test/router/events/golden/vllm-0.32-${form}.json`, import.meta.url);
  const golden = JSON.parse(readFileSync(path, 'utf8')) as Golden;
  t.test(`${golden.source}, without the addon`, t => compare(t, golden, null));
  const addon = loadAddon();
  const skip = addon === null ? addonStatus().reason : false;
  t.test(`${golden.source}, with the addon`, { skip }, t => compare(t, golden, addon!));
}
