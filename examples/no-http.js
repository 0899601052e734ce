// No HTTP at all: the answer as an async iterator, with a deadline; and a routing decision for a request sent elsewhere.
//   node examples/no-http.js
import { createDataPlane, mockWorker } from 'millrace';

const plane = await createDataPlane({ workers: [mockWorker(), mockWorker()] });

const answer = plane.generate({
  model: 'mock-model',
  messages: [{ role: 'user', content: 'Hello' }],
  maxTokens: 32,
  signal: AbortSignal.timeout(10_000),
});
for await (const delta of answer) {
  if (delta.text !== undefined) process.stdout.write(delta.text);
  if (delta.finish !== undefined) console.log(`\n[${delta.finish}]`);
  if (delta.usage !== undefined) console.log(`[${delta.usage.completionTokens} tokens]`);
}

const { worker, reservation } = await plane.pick({ model: 'mock-model', prompt: 'Hello' });
console.log(`a request sent by hand should go to ${worker}`);
reservation.release();

await plane.close();
