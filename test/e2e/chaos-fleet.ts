/** The engines under chaos: mocks that commit faults, one that is always full, one that floods, and one left in peace. */
import type { Test } from 'tap';
import { loadTokenizer } from '#millrace/preprocess/tokenizers/load.js';
import { FAULT_KINDS, type FaultRates } from '#millrace/simulate/faults.js';
import { type MockEngine, startMockEngine } from '#millrace/simulate/mock-engine.js';
import { DONE, type FakeCall, FakeEngine, textFrame } from '../fake-engine.js';
import { CHAT, TOKENIZER } from '../plane-fixture.js';

/** One model for each way in which an answer comes: token, relayIds and relay mode. */
export const MODELS = ['token-model', 'ids-model', 'relay-model'] as const;
/** Its answers are longer than all buffers between the engine and a client. */
export const FLOOD_MODEL = 'flood-model';
export const FLOOD_FRAMES = 60;
/** Characters of one frame of a flood. */
export const FLOOD_CHARS = 200_000;
const FLOOD_TEXT = 'x'.repeat(FLOOD_CHARS);

const FAULTS: FaultRates = {
  refuse: 0.02,
  error500: 0.03,
  halfFrame: 0.02,
  stall: 0.004,
  dieBefore: 0.03,
  dieAfter: 0.02,
  reset: 0.02,
  badFrame: 0.01,
};
/** Share of end-of-sequence tokens: some answers end before `max_tokens`. */
const EOS_RATE = 0.02;

/** A generation request in the terms of the test. */
export interface Sent {
  readonly model: string;
  readonly path: string;
  readonly stream: boolean;
  readonly prompt: string;
  readonly maxTokens: number;
}

export function bodyOf({ model, path, stream, prompt, maxTokens }: Sent): string {
  const input = path === CHAT ? { messages: [{ role: 'user', content: prompt }] } : { prompt };
  return JSON.stringify({ model, stream, max_tokens: maxTokens, ...input });
}

/** The text of a whole answer of either API. */
export function unaryText(body: string): string {
  const [choice] = JSON.parse(body).choices;
  return choice.message?.content ?? choice.text;
}

/** Always full, in both words for it. */
function turnAway(engine: FakeEngine, onRefused: () => number): (call: FakeCall) => void {
  return call => {
    engine.calls.length = 0;
    call.respond(onRefused() % 2 === 0 ? 429 : 503, 'application/json', '{"error":{"message":"full"}}');
  };
}

/** A long answer, written as fast as it is taken. */
function flood(engine: FakeEngine): (call: FakeCall) => void {
  return call => {
    engine.calls.length = 0;
    call.stream();
    let left = FLOOD_FRAMES;
    const more = (): void => {
      while (!call.closed) {
        if (left === 0) {
          call.socket.off('drain', more);
          call
            .send(textFrame('', [], 'stop'))
            .send(DONE)
            .end();
          return;
        }
        left--;
        const frame = textFrame(FLOOD_TEXT, [left]);
        if (!call.raw(`${frame.length.toString(16)}\r\n${frame}\r\n`)) return;
      }
    };
    call.socket.on('drain', more);
    more();
  };
}

export class ChaosFleet {
  readonly #mocks: readonly MockEngine[];
  readonly #fakes: readonly FakeEngine[];
  readonly #undisturbed: MockEngine;
  readonly #texts = new Map<string, Promise<string>>();
  #turnedAway = 0;

  private constructor(mocks: readonly MockEngine[], fakes: readonly FakeEngine[], undisturbed: MockEngine) {
    this.#mocks = mocks;
    this.#fakes = fakes;
    this.#undisturbed = undisturbed;
    const [fullEngine] = fakes;
    fullEngine!.script = turnAway(fullEngine!, () => ++this.#turnedAway);
  }

  /** Starts all engines; they are closed with the test. */
  static async start(t: Test, seed: number): Promise<ChaosFleet> {
    const shared = {
      tokenizer: await loadTokenizer(TOKENIZER),
      speed: 'unlimited',
      eosRate: EOS_RATE,
    } as const;
    const [token, ids, relay] = MODELS;
    const mocks = await Promise.all(
      [token, token, token, ids, ids, relay, relay].map((model, at) => {
        const own = { model, faults: FAULTS, faultSeed: seed + at, returnsTokenIds: model !== relay };
        return startMockEngine({ ...shared, ...own });
      }),
    );
    const fullEngine = await FakeEngine.start({ model: ids });
    const floodEngine = await FakeEngine.start({ model: FLOOD_MODEL, contextLength: 1_000_000 });
    floodEngine.script = flood(floodEngine);
    const undisturbed = await startMockEngine({ ...shared, model: token });
    const fleet = new ChaosFleet(mocks, [fullEngine, floodEngine], undisturbed);
    t.teardown(() =>
      Promise.all([...mocks, fullEngine, floodEngine, undisturbed].map(engine => engine.close())),
    );
    return fleet;
  }

  get urls(): readonly string[] {
    return [...this.#mocks, ...this.#fakes].map(engine => engine.url);
  }

  /** Faults that took place, by kind; `full` are the answers 429 and 503. */
  get faults(): Record<string, number> {
    const sums = FAULT_KINDS.map(kind => [
      kind,
      this.#mocks.reduce((sum, mock) => sum + mock.faults.fired[kind], 0),
    ]);
    return { ...Object.fromEntries(sums), full: this.#turnedAway };
  }

  /** Generation requests that the mocks have not ended. */
  get running(): number {
    return this.#mocks.reduce(
      (sum, mock) => sum + mock.counters.running + mock.core.running + mock.core.waiting,
      0,
    );
  }

  /** The text that an engine gives to which nothing happens. */
  textOf(sent: Sent): Promise<string> {
    const whole = { ...sent, model: MODELS[0], stream: false };
    const key = bodyOf(whole);
    const known = this.#texts.get(key) ?? this.#ask(whole.path, key);
    this.#texts.set(key, known);
    return known;
  }

  async #ask(path: string, body: string): Promise<string> {
    const headers = { 'content-type': 'application/json', connection: 'close' };
    const response = await fetch(this.#undisturbed.url + path, { method: 'POST', headers, body });
    return unaryText(await response.text());
  }
}
