/** Embedded planes for the tests of this folder: over mock workers of the plane's own, or over one that the test can look into. */
import type { Test } from 'tap';
import { createDataPlane, type DataPlane, type DataPlaneOptions, type Delta } from '#millrace/index.js';
import { type MockEngine, type MockEngineOptions, startMockEngine } from '#millrace/simulate/mock-engine.js';

export const MODEL = 'mock-model';
export const CHAT = '/v1/chat/completions';
const silent = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/** A plane over one mock engine that runs in the test's thread; both end with the test. */
export async function planeOverMock(
  t: Test,
  options: DataPlaneOptions = {},
  mock: MockEngineOptions = {},
): Promise<{ plane: DataPlane; engine: MockEngine }> {
  const engine = await startMockEngine({ speed: 'unlimited', serverKind: 'node', ...mock });
  const plane = await createDataPlane({
    workers: [engine.url],
    tokenizer: 'chatml-cl100k',
    poolThreads: 1,
    logger: silent,
    ...options,
  });
  t.teardown(async () => {
    await plane.close({ drainDeadlineMs: 0 });
    await engine.close();
  });
  return { plane, engine };
}

/** A chat request body; the mock's answer depends on it alone. */
export const chatBody = (more: Record<string, unknown> = {}) => ({
  model: MODEL,
  messages: [{ role: 'user', content: 'Tell me something.' }],
  max_tokens: 16,
  ...more,
});

export async function collect(answer: AsyncIterable<Delta>): Promise<Delta[]> {
  const deltas: Delta[] = [];
  for await (const delta of answer) deltas.push(delta);
  return deltas;
}

export const textOf = (deltas: readonly Delta[], index = 0): string =>
  deltas
    .filter(delta => delta.index === index)
    .map(delta => delta.text ?? '')
    .join('');

/** Resolves when the condition holds, which nothing tells of as an event; throws after a deadline. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const endMs = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`waited 10 s until ${what}`);
    await new Promise(resolve => setImmediate(resolve));
  }
}
