// Serves OpenAI's API below /llm of an express app, over a mock worker. Name real ones instead: workers: ['http://10.0.0.7:8000'].
//   node examples/express.js
//   curl http://127.0.0.1:3000/llm/v1/chat/completions -H 'content-type: application/json' \
//     -d '{"model":"mock-model","messages":[{"role":"user","content":"Hello"}],"max_tokens":32,"stream":true}'
import express from 'express';
import { createDataPlane, mockWorker } from 'millrace';

const plane = await createDataPlane({ workers: [mockWorker()] });

const app = express();
app.use('/llm', plane.nodeHandler());
app.get('/health', (_req, res) => {
  res.json({ app: 'ok', plane: plane.health() });
});

const server = app.listen(Number(process.env.PORT ?? 3000), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port}/llm/v1`);
});

// A plane handles no signals: its host decides when it ends. Open answers finish first.
process.once('SIGTERM', async () => {
  server.close();
  await plane.close();
  server.closeAllConnections();
});
