/**
 * The engine's half of a plane in a process of its own, without clients: it holds many token streams open, over HTTP or
 * over a worker link, decodes them as an attempt does and counts their ids. Prints `{"event":"listening","address":…}`;
 * every message is answered with what it has counted and what CPU time that took. Nothing but the way differs.
 */
import { randomBytes } from 'node:crypto';
import { EngineClient } from '#millrace/engines/client.js';
import { rowStart } from '#millrace/engines/event-rows.js';
import { FRAME } from '#millrace/engines/frame-descriptor.js';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { showLinkAddress } from '#millrace/engines/link/link-secret.js';
import { LinkServer } from '#millrace/engines/link/link-server.js';
import { createVllmAdapter } from '#millrace/engines/vllm.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { systemClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';

const MAX_TOKENS = 100_000;
const LIMITS = { firstFrameBytesMax: 4 << 20, frameBytesMax: 256 << 10 };
const addon = loadAddon();
const adapter = createVllmAdapter({ scanner: createFrameScanner(addon) });
const counts = { tokens: 0, rowTokens: 0, begun: 0, failed: 0, isLinked: false };

/** @param {import('#millrace/engines/contract.js').FrameBatch} batch */
function count({ table, ids, count: rows }) {
  let tokens = 0;
  let sum = 0;
  for (let row = 0; row < rows; row++) {
    const at = rowStart(row);
    const first = table[at + FRAME.idsFirst];
    if (first < 0) continue;
    const idsCount = table[at + FRAME.idsCount];
    for (let id = first; id < first + idsCount; id++) sum += ids[id];
    tokens += idsCount;
  }
  if (!(sum >= 0)) throw new Error('ids are no numbers');
  counts.tokens += tokens;
  return tokens;
}

function makeSink() {
  /** @type {import('#millrace/engines/contract.js').EngineStream | null} */
  let stream = null;
  return {
    onHead: (/** @type {number} */ status) => {
      if (status !== 200) counts.failed += 1;
      counts.begun += 1;
      stream = adapter.openStream(LIMITS);
    },
    onRows: batch => {
      counts.rowTokens += count(batch);
    },
    onData: chunk => {
      if (stream?.push(chunk, count) !== null) counts.failed += 1;
    },
    onEnd: () => {
      counts.failed += 1;
    },
    onError: fault => {
      if (fault.kind !== 'aborted') counts.failed += 1;
    },
  };
}

const http = new EngineClient({ clock: systemClock, connectDeadlineMs: 10_000 });
const server = new LinkServer({
  address: { path: null, host: '127.0.0.1', port: 0, isTls: false },
  secret: null,
  tls: null,
  lanes: [],
  makeNonce: () => randomBytes(32),
  clock: systemClock,
  logger: createLogger({ level: 'warn', format: 'text' }),
  connectionsMax: 4,
  events: {
    onLinked: () => {
      counts.isLinked = true;
    },
    onEvents: () => {},
    onHealth: () => {},
    onUnlinked: () => {},
  },
});

/** @param {{ way: 'http' | 'link', origin: string, streams: number }} message */
function open({ way, origin, streams }) {
  const client = way === 'http' ? http : server.linkTo(origin);
  const body = Buffer.from(
    JSON.stringify({
      model: 'bench-model',
      prompt: [1, 2, 3],
      max_tokens: MAX_TOKENS,
      stream: true,
      return_token_ids: true,
    }),
  );
  const head = [['content-type', 'application/json']];
  for (let stream = 0; stream < streams; stream += 1)
    client.send({ origin, method: 'POST', path: '/v1/completions', head, body, wantsRows: true }, makeSink());
}

process.on('message', message => {
  if (message.do === 'open') open(message);
  const { user, system } = process.cpuUsage();
  process.send({ ...counts, atMs: performance.now(), cpuSeconds: (user + system) / 1e6 });
});
process.stdin.on('end', () => process.exit(0)).resume();
const address = showLinkAddress(await server.listen());
process.stdout.write(`${JSON.stringify({ event: 'listening', address })}\n`);
