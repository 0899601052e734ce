/** The writer thread of the index thread test: applies one stream of operations, a round at a time, and counts them. */
import { parentPort, workerData } from 'node:worker_threads';
import { SharedIndexWriter } from '#millrace/router/index/shared-index.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import type { OpKind } from './index-model.js';
import { applyOp, Forest, OpStream } from './index-model.js';

/** Words of the shared counters: operations begun, operations ended, rounds asked for, rounds done. */
export const COUNTER = { begun: 0, ended: 1, asked: 2, done: 3 } as const;

/** What the thread is given. A round of 0 operations ends it. */
export interface WriterTask {
  memory: SharedArrayBuffer;
  counters: Int32Array;
  seed: number;
  blocks: number;
  depthMax: number;
  kinds: readonly OpKind[];
  roundOps: number;
}

function run({ memory, counters, seed, blocks, depthMax, kinds, roundOps }: WriterTask): void {
  const writer = new SharedIndexWriter(loadAddon()!, memory);
  const forest = new Forest(seed, blocks, depthMax);
  const stream = new OpStream(seed, forest, kinds);
  parentPort!.on('message', () => {
    for (let n = 0; n < roundOps; n += 1) {
      const op = stream.next();
      Atomics.add(counters, COUNTER.begun, 1);
      applyOp(writer, forest, op);
      Atomics.add(counters, COUNTER.ended, 1);
    }
    Atomics.add(counters, COUNTER.done, 1);
    parentPort!.postMessage(writer.stats());
  });
}

if (workerData?.roundOps !== undefined) run(workerData as WriterTask);
