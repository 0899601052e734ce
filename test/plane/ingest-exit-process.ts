/** A process with an embedded plane over workers with KV events, which ends without closing it: by `exit` or by a throw. */
import { createDataPlane } from '#millrace/index.js';
import { startMockEngine } from '#millrace/simulate/mock-engine.js';

const engine = await startMockEngine({ speed: 'unlimited', events: {} });
const { publish, replay } = engine.events!;
const plane = await createDataPlane({
  workers: [{ url: engine.url, kvEvents: publish, kvEventsReplay: replay }],
});
// The engine's own sockets are on this thread.
await engine.close();
if (plane.health().prefixIndex !== 'serving') process.exit(9);
if (process.argv[2] === 'exit') process.exit(7);
throw new Error('a bug of the host');
