// Serves OpenAI's API below /llm of a fastify app, beside routes with the app's own body parser.
//   node examples/fastify.js
import fastify from 'fastify';
import { createDataPlane, mockWorker } from 'millrace';

const plane = await createDataPlane({ workers: [mockWorker()] });

const app = fastify();
app.register(plane.fastify, { prefix: '/llm' });
app.get('/metrics', async (_request, reply) => {
  reply.type('text/plain; version=0.0.4');
  return plane.metrics();
});
app.addHook('onClose', () => plane.close());

const url = await app.listen({ port: Number(process.env.PORT ?? 3000), host: '127.0.0.1' });
console.log(`${url}/llm/v1`);
process.once('SIGTERM', () => app.close());
