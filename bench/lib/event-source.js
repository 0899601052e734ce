/**
 * A thread of bench/route.js that publishes recorded batches through a real ZMQ socket: at a given rate of blocks, or as
 * fast as the reader takes them. The time stamp of each batch is the monotonic time of its sending, in seconds.
 */
import { once } from 'node:events';
import { parentPort, workerData } from 'node:worker_threads';
import { seededRandom } from '#millrace/runtime/random.js';
import { KvEventPublisher } from '#millrace/simulate/vllm/kv-event-publisher.js';

/** Where the time stamp of a batch lies: after the head of an array of three and the mark of a float64. */
export const STAMP_AT = 2;
const FLOAT64 = 0xcb;
/** Batches sent without a pause when there is no rate. */
const BURST = 64;

/** Monotonic seconds, the same in all threads. */
export const monotonicSeconds = () => Number(process.hrtime.bigint()) / 1e9;

async function publish({ frames, blocksPerSecond }) {
  const publisher = await KvEventPublisher.open({
    host: '127.0.0.1',
    port: 0,
    replayPort: 0,
    topic: '',
    bufferBatches: 1,
    loss: 0,
    random: seededRandom(1),
  });
  parentPort.postMessage(publisher.publish);
  // The reader has subscribed.
  await once(parentPort, 'message');
  const started = monotonicSeconds();
  let sentBlocks = 0;
  for (const [n, { bytes, blocks }] of frames.entries()) {
    const payload = Buffer.from(bytes);
    if (payload[STAMP_AT - 1] !== FLOAT64) throw new Error('a recorded batch does not begin with its time');
    payload.writeDoubleBE(monotonicSeconds(), STAMP_AT);
    publisher.send(payload);
    sentBlocks += blocks;
    if (blocksPerSecond === null) {
      if (n % BURST === BURST - 1) await new Promise(setImmediate);
      continue;
    }
    while (sentBlocks > (monotonicSeconds() - started) * blocksPerSecond)
      await new Promise(resolve => setTimeout(resolve, 1));
  }
  await once(parentPort, 'message');
  await publisher.close();
}

if (workerData?.frames !== undefined) await publish(workerData);
