/**
 * A process with an embedded plane over workers with KV events, which ends without closing it: by `exit` or by a throw. It
 * exits with 8 where the plane has left a listener for that.
 */
import { createDataPlane } from '#millrace/index.js';
import { MOCK_MODEL, startMockEngine } from '#millrace/simulate/mock-engine.js';

const engine = await startMockEngine({ speed: 'unlimited', events: {} });
const { publish, replay } = engine.events!;
const exitListeners = process.listenerCount('exit');
const plane = await createDataPlane({
  workers: [{ url: engine.url, kvEvents: publish, kvEventsReplay: replay }],
});
// Only then its socket is known to be open.
while (!/^millrace_kv_events_total\{kind="messages"\} [1-9]/m.test(await plane.metrics())) {
  for await (const _ of plane.generate({
    model: MOCK_MODEL,
    prompt: `${performance.now()} `.repeat(100),
    maxTokens: 1,
  }));
}
// The engine's own sockets are on this thread.
await engine.close();
if (process.listenerCount('exit') > exitListeners) process.exit(8);
if (process.argv[2] === 'exit') process.exit(7);
throw new Error('a bug of the host');
