// The fetch handler, (Request) => Promise<Response>, in a Hono app; any host of that style takes it.
//   node examples/fetch.js
import { serve } from '@hono/node-server';
import { Hono } from 'hono';
import { createDataPlane, mockWorker } from 'millrace';

const plane = await createDataPlane({ workers: [mockWorker()] });

const app = new Hono();
app.mount('/llm', plane.fetchHandler());
app.get('/health', c => c.json(plane.health()));

const server = serve(
  { fetch: app.fetch, port: Number(process.env.PORT ?? 3000), hostname: '127.0.0.1' },
  at => {
    console.log(`http://127.0.0.1:${at.port}/llm/v1`);
  },
);
process.once('SIGTERM', async () => {
  server.close();
  await plane.close();
  server.closeAllConnections();
});
