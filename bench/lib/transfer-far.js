/**
 * The far end of bench/transfer.js in a process of its own: an agent with the pools that it is told to make, which answers
 * with its metadata, says its processor time when asked, and ends when told to or when the bench is gone.
 */
import { createAgent } from '#millrace/transfer/index.js';

/** @type {import('#millrace/transfer/index.js').TransferAgent | undefined} */
let agent;

function open({ transport, pools, metadata, fromCaller }) {
  agent = createAgent({ transports: [transport] });
  const ids = pools.map(({ blockBytes, blocks }) => {
    const layout = { kind: 'opaque', blockBytes };
    if (!fromCaller) return agent.createPool({ layout, blocks }).id;
    return agent.registerPool({ layout, blocks, buffer: new ArrayBuffer(blockBytes * blocks) }).id;
  });
  agent.connect(metadata);
  process.send({ metadata: agent.metadata(), ids });
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
