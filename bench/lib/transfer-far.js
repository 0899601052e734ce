/**
 * The far end of bench/transfer.js in a process of its own: an agent with the pool that it is told to make, which answers with
 * its metadata, says its processor time when asked, and ends when told to or when the bench is gone.
 */
import { createAgent } from '#millrace/transfer/index.js';

/** @type {import('#millrace/transfer/index.js').TransferAgent | undefined} */
let agent;

function open({ transport, blockBytes, blocks, isRegistered, name, metadata }) {
  agent = createAgent({ transports: [transport] });
  const layout = { kind: 'opaque', blockBytes };
  const buffer = isRegistered ? new ArrayBuffer(blockBytes * blocks) : null;
  const pool =
    buffer === null
      ? agent.createPool({ layout, blocks, name })
      : agent.registerPool({ layout, blocks, buffer });
  // Pages are made when they are first written, and large ones only after the pool has asked for them.
  if (buffer !== null) new Uint8Array(buffer).fill(1);
  agent.connect(metadata);
  process.send({ metadata: agent.metadata(), pool: pool.id });
}

process.on('disconnect', () => process.exit(0));
process.on('message', async message => {
  if (message === 'cpu') {
    const { user, system } = process.cpuUsage();
    process.send((user + system) / 1e6);
  } else if (message === 'close') {
    await agent.close();
    process.disconnect();
  } else open(message);
});
