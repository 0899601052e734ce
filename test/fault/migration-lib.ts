/** What the migration tests share: requests whose undisturbed answer is known, and what of an answer has to be the same. */
import type { Test } from 'tap';
import { CHAT, COMPLETIONS, jsonOf, MOCK_MODEL, type PlaneFixture, type Reply } from '../plane-fixture.js';

export type Json = Record<string, unknown>;

export const APIS = [
  [CHAT, { messages: [{ role: 'user', content: 'tell me of "rivers"' }] }],
  [COMPLETIONS, { prompt: 'the quick brown fox' }],
] as const;

/** What a client is to find the same in every answer to a request, however often it went on elsewhere. */
export interface Substance {
  readonly text: string;
  readonly finish: string | null;
  readonly stopReason: unknown;
  readonly logprobs: unknown;
}

// biome-ignore lint/suspicious/noExplicitAny: bodies are read as the JSON of another program
type Choice = any;

function joinLogprobs(list: readonly Choice[]): unknown {
  const given = list.map(choice => choice.logprobs).filter(one => one !== null && one !== undefined);
  if (given.length === 0) return null;
  const names = Object.keys(given[0]).filter(name => given[0][name] !== null);
  return Object.fromEntries(names.map(name => [name, given.flatMap(one => one[name])]));
}

function substanceOf(pieces: readonly Choice[]): Substance {
  const last = pieces.findLast(piece => typeof piece.finish_reason === 'string');
  return {
    text: pieces.map(piece => piece.text ?? piece.delta?.content ?? piece.message?.content ?? '').join(''),
    finish: last?.finish_reason ?? null,
    stopReason: last?.stop_reason ?? null,
    logprobs: joinLogprobs(pieces),
  };
}

/** Choice by choice. */
export function substancesOf(reply: Reply, choices: number): Substance[] {
  const frames = reply.frames.length > 0 ? reply.frames : [jsonOf(reply)];
  const pieces: Choice[] = frames.flatMap(frame => frame.choices ?? []);
  return Array.from({ length: choices }, (_, index) =>
    substanceOf(pieces.filter(piece => piece.index === index)),
  );
}

/** Token counts of an answer. */
export function countsOf(reply: Reply): Json | null {
  const usages = (reply.frames.length > 0 ? reply.frames : [jsonOf(reply)]).map(frame => frame.usage);
  const usage = usages.findLast(one => one !== null && one !== undefined);
  if (usage === undefined) return null;
  return { prompt: usage.prompt_tokens, completion: usage.completion_tokens, total: usage.total_tokens };
}

/** A stream is one stream: one identity, one role per choice, one end. */
export function expectOneStream(t: Test, reply: Reply, path: string, choices: number): void {
  t.ok(reply.done && !reply.broken, 'ends once, properly');
  t.equal(reply.text.match(/\[DONE\]/g)?.length, 1);
  t.notOk(
    reply.frames.some(frame => 'error' in frame),
    'no error',
  );
  const identities = new Set(
    reply.frames.map(({ id, created, model, object }) => `${id} ${created} ${model} ${object}`),
  );
  t.equal(identities.size, 1, 'one id, time, model and kind');
  const roles = reply.frames.flatMap(frame => frame.choices ?? []).filter(choice => choice.delta?.role);
  t.equal(roles.length, path === CHAT ? choices : 0, 'the role once');
  t.notMatch(reply.text, /token_ids/);
}

/** Faults of all engines so far. */
export function firedOf(fixture: PlaneFixture): number {
  return fixture.mocks
    .flatMap(mock => Object.values(mock.faults.fired))
    .reduce((sum, count) => sum + count, 0);
}

/** The ask of every test, with what it varies. */
export const bodyOf = (prompt: Json, more: Json): Json => ({
  model: MOCK_MODEL,
  ...prompt,
  max_tokens: 14,
  ...more,
});
