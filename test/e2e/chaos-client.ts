/**
 * One client under chaos: request after request over its own connection, each in a manner drawn from the seed. Every
 * request comes to one end, which is counted under its name.
 */
import type { ErrorCode } from '#millrace/errors.js';
import { endCauseOf } from '#millrace/plane/request-context.js';
import { type Random, randomInteger } from '#millrace/runtime/random.js';
import { CHAT, COMPLETIONS } from '../plane-fixture.js';
import { type Answer, ChaosConnection } from './chaos-connection.js';
import {
  bodyOf,
  type ChaosFleet,
  FLOOD_CHARS,
  FLOOD_FRAMES,
  FLOOD_MODEL,
  MODELS,
  type Sent,
  unaryText,
} from './chaos-fleet.js';

/** Limit of the plane under chaos: far above the pauses of clients that read on. */
export const SLOW_CLIENT_DEADLINE_MS = 1200;

/** What clients do, with the share of the requests; the rest of the clients wait in peace. */
export const MANNERS = {
  leaveInBody: 0.02,
  leaveWaiting: 0.02,
  leaveInAnswer: 0.04,
  resetWaiting: 0.02,
  resetInAnswer: 0.03,
  stall: 0.03,
  readSlowly: 0.02,
  wrong: 0.03,
  floodAndStall: 0.002,
  floodAndHang: 0.002,
} as const;
export type Manner = keyof typeof MANNERS | 'patient';

const HEAD = 'HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ';
const PAUSE_MS_MAX = 60;
/** For the deadline of clients that do not read, and the time until the plane sees that nothing is taken. */
const HANG_MS = 2 * SLOW_CLIENT_DEADLINE_MS;

/** The ends of all requests of a run, as the clients saw them. */
export class Tally {
  sent = 0;
  completed = 0;
  /** Clients that gave up, or were cut because they did not read. */
  left = 0;
  /** Of those, the ones that broke the connection before anything said that the plane had seen the request. */
  leftUnseen = 0;
  /** Errors that a client was told, by the cause that the plane has for their code. */
  readonly errors: Record<string, number> = {};
  readonly manners: Record<string, number> = {};
  readonly completedByModel: Record<string, number> = {};
  /** What should never be: the first ones, as text. */
  readonly wrong: string[] = [];

  /** Requests that were refused: the plane or an engine said that they are wrong, or that there is no room. */
  get rejected(): number {
    return this.errors.rejected ?? 0;
  }

  get failed(): number {
    return Object.values(this.errors).reduce((sum, count) => sum + count, 0) - this.rejected;
  }

  count(counts: Record<string, number>, name: string): void {
    counts[name] = (counts[name] ?? 0) + 1;
  }
}

function drawManner(random: Random): Manner {
  let left = random();
  for (const [manner, share] of Object.entries(MANNERS)) {
    left -= share;
    if (left < 0) return manner as Manner;
  }
  return 'patient';
}

function drawRequest(random: Random, manner: Manner): Sent {
  const isFlood = manner === 'floodAndStall' || manner === 'floodAndHang';
  return {
    model: isFlood ? FLOOD_MODEL : MODELS[randomInteger(random, MODELS.length)]!,
    path: isFlood || random() < 0.5 ? COMPLETIONS : CHAT,
    stream: isFlood || random() < 0.6,
    prompt: `chapter ${randomInteger(random, 12)} ${'of many words '.repeat(randomInteger(random, 3) * 20)}`,
    maxTokens: manner === 'wrong' ? -1 : [1, 5, 17, 40][randomInteger(random, 4)]!,
  };
}

const pause = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms));

export class ChaosClient {
  readonly #random: Random;
  readonly #fleet: ChaosFleet;
  readonly #tally: Tally;
  readonly #connection: ChaosConnection;

  constructor(port: number, random: Random, fleet: ChaosFleet, tally: Tally) {
    this.#random = random;
    this.#fleet = fleet;
    this.#tally = tally;
    this.#connection = new ChaosConnection(port);
  }

  /** Sends one request and resolves when it has come to its end. */
  async one(): Promise<void> {
    const random = this.#random;
    const tally = this.#tally;
    const manner = drawManner(random);
    const sent = drawRequest(random, manner);
    const body = bodyOf(sent);
    const part = manner === 'leaveInBody' || (manner === 'resetWaiting' && random() < 0.3);
    const bytes = part ? randomInteger(random, body.length) : body.length;
    const delayMs = random() * (random() < 0.5 ? 3 : PAUSE_MS_MAX);
    const chars = 20 + randomInteger(random, 3000);
    tally.sent++;
    tally.count(tally.manners, manner);
    await this.#connection.begin(`POST ${sent.path} ${HEAD}${body.length}\r\n\r\n${body.slice(0, bytes)}`);
    if (manner === 'leaveInBody' || manner === 'leaveWaiting') {
      await pause(delayMs);
      this.#connection.leave();
      tally.left++;
    } else if (manner === 'resetWaiting') {
      await pause(delayMs);
      this.#connection.reset();
      tally.left++;
      tally.leftUnseen++;
    } else if (manner === 'leaveInAnswer' || manner === 'resetInAnswer') {
      await this.#connection.received(chars);
      if (manner === 'leaveInAnswer') this.#connection.leave();
      else this.#connection.reset();
      tally.left++;
    } else {
      await this.#dawdle(manner, chars, delayMs);
      await this.#judge(sent, manner, await this.#connection.answer());
    }
  }

  close(): void {
    this.#connection.leave();
  }

  /** Delays of the clients that wait for the end. */
  async #dawdle(manner: Manner, chars: number, delayMs: number): Promise<void> {
    const connection = this.#connection;
    if (manner === 'readSlowly') connection.readSlowly(1 + (delayMs & 3));
    else if (manner === 'stall' || manner === 'floodAndStall' || manner === 'floodAndHang') {
      await connection.received(chars);
      connection.pause();
      await pause(manner === 'floodAndHang' ? HANG_MS : delayMs);
      connection.resume();
    }
  }

  async #judge(sent: Sent, manner: Manner, answer: Answer): Promise<void> {
    const tally = this.#tally;
    if (manner === 'floodAndHang' && !answer.isWhole) {
      tally.left++;
      return;
    }
    if (!answer.isWhole) this.#wrong(sent, `cut after ${JSON.stringify(answer.body.slice(-200))}`);
    else if (answer.status !== 200) this.#failed(sent, manner, JSON.parse(answer.body).error);
    else if (sent.stream) await this.#judgeStream(sent, manner, answer.body);
    else await this.#completed(sent, unaryText(answer.body));
  }

  async #judgeStream(sent: Sent, manner: Manner, body: string): Promise<void> {
    const lines = body.split('\n').filter(line => line.startsWith('data: '));
    const isDone = lines.pop() === 'data: [DONE]';
    const frames = lines.map(line => JSON.parse(line.slice(6)));
    const error = frames.at(-1)?.error;
    if (!isDone) this.#wrong(sent, `no end: ${body.slice(-200)}`);
    else if (error !== undefined) this.#failed(sent, manner, error);
    else {
      const choices = frames.flatMap(frame => frame.choices ?? []);
      await this.#completed(sent, choices.map(choice => choice.text ?? choice.delta.content ?? '').join(''));
    }
  }

  async #completed(sent: Sent, text: string): Promise<void> {
    const tally = this.#tally;
    tally.completed++;
    tally.count(tally.completedByModel, sent.model);
    if (sent.maxTokens < 0) this.#wrong(sent, 'a wrong request was answered');
    else if (sent.model === FLOOD_MODEL) {
      if (text.length !== FLOOD_FRAMES * FLOOD_CHARS)
        this.#wrong(sent, `${text.length} characters of a flood`);
    } else {
      const wanted = await this.#fleet.textOf(sent);
      if (text !== wanted) this.#wrong(sent, `got ${JSON.stringify(text)}, wanted ${JSON.stringify(wanted)}`);
    }
  }

  #failed(sent: Sent, manner: Manner, error: { code: ErrorCode; message: string }): void {
    const cause = endCauseOf(error.code);
    const isExpected = cause === 'internal' ? error.code === 'MILLRACE_POOL_LOST' : cause !== 'drained';
    if (!isExpected || (manner === 'wrong') !== (error.code === 'MILLRACE_INVALID_REQUEST'))
      this.#wrong(sent, `${error.code}: ${error.message}`);
    this.#tally.count(this.#tally.errors, cause);
  }

  #wrong(sent: Sent, what: string): void {
    this.#tally.wrong.push(`${JSON.stringify(sent).slice(0, 200)}: ${what}`);
  }
}
