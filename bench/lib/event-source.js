/**
 * A thread of bench/route.js that publishes recorded batches through a socket of libzmq at a given rate of blocks. The time stamp of each batch is the monotonic time of its sending, in seconds.
 */
import { once } from 'node:events';
import { parentPort, workerData } from 'node:worker_threads';
import { seededRandom } from '#millrace/runtime/random.js';
import { KvEventPublisher } from '#millrace/simulate/vllm/kv-event-publisher.js';

/** Where the time stamp of a batch lies: after the head of an array of three and the mark of a float64. */
export const STAMP_AT = 2;
const FLOAT64 = 0xcb;

/** The float64 at `at`, as msgpack has it. */
export const readDouble = (bytes, at) => new DataView(bytes.buffer, bytes.byteOffset + at).getFloat64(0);

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
  for (const { bytes, blocks } of frames) {
    // The thread's own copy already: another one would be garbage, whose collection would be measured.
    const payload = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
    if (payload[STAMP_AT - 1] !== FLOAT64) throw new Error('a recorded batch does not begin with its time');
    payload.writeDoubleBE(monotonicSeconds(), STAMP_AT);
    publisher.send(payload);
    sentBlocks += blocks;
    while (sentBlocks > (monotonicSeconds() - started) * blocksPerSecond)
      await new Promise(resolve => setTimeout(resolve, 1));
  }
  await once(parentPort, 'message');
  await publisher.close();
}

if (workerData?.frames !== undefined) await publish(workerData);
