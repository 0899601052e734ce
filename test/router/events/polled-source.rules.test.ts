// Promise: a polled source polls one at a time, at once while there are events, later and later while it fails; what it
// cannot continue it clears and says why; and what it hands on decodes to just the events that it was given.
import t, { type Test } from 'tap';
import { BatchWriter } from '#millrace/router/events/batch-writer.js';
import type { EngineBlockHash, PolledEvent, StoredBlocks } from '#millrace/router/events/contract.js';
import { SOURCE_COUNTERS, type SourceCounts } from '#millrace/router/events/contract.js';
import { createEventDecoder } from '#millrace/router/events/decoder.js';
import { EVENT_KIND, EVENT_ROW, EVENT_ROW_WORDS } from '#millrace/router/events/event-tables.js';
import { createNativeDecoder } from '#millrace/router/events/native-decoder.js';
import { PolledSource } from '#millrace/router/events/polled-source.js';
import { loadAddon } from '#millrace/runtime/addon.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { createLogger } from '#millrace/runtime/logger.js';
import { seededRandom } from '#millrace/runtime/random.js';

const PERIOD_MS = 100;
const seed = Number(process.env.SEED ?? Date.now() % 1e9);
t.comment(`SEED=${seed}`);
const random = seededRandom(seed);

/** Text of the first hash of each row: events here are removals of their own name. */
async function namesOf(payload: Uint8Array): Promise<string> {
  const decoder = await createEventDecoder();
  const rows = decoder.decode(payload);
  return Array.from({ length: rows }, (_, row) => {
    const at = decoder.tables.rows[row * EVENT_ROW_WORDS + EVENT_ROW.firstBlock]!;
    return String(decoder.tables.hashes[at * 4]);
  }).join(' ');
}

/** A source over a server that the test plays: `answer` or `fail` ends the poll that runs. */
class Scripted {
  readonly clock = new ManualClock();
  readonly counts = Object.fromEntries(SOURCE_COUNTERS.map(kind => [kind, 0])) as SourceCounts;
  readonly told: string[] = [];
  readonly lines: string[] = [];
  readonly source: PolledSource;
  readonly payloads: Uint8Array[] = [];
  translators = 0;
  running = 0;
  #end: {
    resolve: (answer: { status: number; body: string }) => void;
    reject: (error: Error) => void;
  } | null = null;

  constructor() {
    const logger = createLogger({ level: 'info', format: 'text', write: line => this.lines.push(line) });
    this.source = new PolledSource({
      url: 'http://worker/events',
      name: 'http://worker',
      protocol: {
        connect: () => ({
          poll: () => {
            this.running += 1;
            return new Promise((resolve, reject) => {
              this.#end = { resolve, reject };
            });
          },
          close: async () => this.#end?.reject(new Error('closed')),
        }),
        read: body => JSON.parse(body) as PolledEvent[],
        createTranslator: () => {
          this.translators += 1;
          return { write: ({ id }, writer) => writer.remove([BigInt(id)]) };
        },
      },
      limits: { eventPollPeriodMs: PERIOD_MS, eventPollDeadlineMs: 1000, eventPollBytesMax: 1000 },
      blockSize: 16,
      counts: this.counts,
      clock: this.clock,
      random: () => 0,
      logger,
      follow: isFollowed => this.told.push(isFollowed ? 'follow' : 'guess'),
      clear: () => this.told.push('clear'),
      deliver: payload => {
        this.told.push(`batch ${this.payloads.push(payload) - 1}`);
      },
    });
    this.source.start();
  }

  /** Ends the poll with events, each an id or `[id, rank]`. */
  async answer(...ids: (number | [number, number])[]): Promise<void> {
    const events = ids.map(id => (Array.isArray(id) ? { id: id[0], rank: id[1] } : { id, rank: 0 }));
    await this.end(200, JSON.stringify(events));
  }

  async end(status: number, body: string): Promise<void> {
    this.running -= 1;
    this.#end!.resolve({ status, body });
    await new Promise(setImmediate);
  }

  async fail(why = 'too slow'): Promise<void> {
    this.running -= 1;
    this.#end!.reject(new Error(why));
    await new Promise(setImmediate);
  }

  /** What was told since the last call, batches as the names in them. */
  async take(): Promise<string[]> {
    const told = await Promise.all(
      this.told.map(entry =>
        entry.startsWith('batch ') ? namesOf(this.payloads[Number(entry.slice(6))]!) : entry,
      ),
    );
    this.told.length = 0;
    return told;
  }

  saidOf(text: string): number {
    return this.lines.filter(line => line.includes(text)).length;
  }
}

t.test('at once while there are events, else after the period; one at a time', async t => {
  const server = new Scripted();
  t.equal(server.running, 1);
  await server.answer();
  t.same([server.running, server.clock.nextInMs()], [0, PERIOD_MS]);
  t.equal(server.saidOf('no KV events come yet'), 1);
  server.clock.advance(PERIOD_MS);
  t.equal(server.running, 1);
  server.clock.advance(10 * PERIOD_MS);
  t.equal(server.running, 1, 'the next one waits for the answer');
  await server.answer(0, 1);
  t.same(await server.take(), ['follow', '0 1']);
  t.equal(server.running, 1, 'at once');
  await server.answer(2);
  await server.answer();
  t.same([await server.take(), server.running], [['2'], 0]);
  t.match(server.counts, { polls: 4, messages: 2, gaps: 0, lostBatches: 0, pollFailures: 0 });
  await server.source.close();
  t.equal(server.clock.nextInMs(), null);
});

t.test('ids that skip clear and are explained once per cause; ranks count for themselves', async t => {
  const server = new Scripted();
  await server.answer(7, [0, 1], 8, [1, 1]);
  t.same(await server.take(), ['follow', '7 0 8 1']);
  t.match(server.counts, { lostBatches: 7, gaps: 0, clearedRanks: 0 }, 'it ran before we came');
  await server.answer(9, 11, [2, 1]);
  t.same(await server.take(), ['clear', '11 2'], 'what came before the gap is not handed on');
  await server.answer(13);
  t.same(await server.take(), ['clear', '13']);
  t.equal(server.saidOf('something else polls'), 1);
  await server.answer(...Array.from({ length: 200 }, (_, at) => 20 + at));
  t.equal(server.saidOf('ran over'), 1);
  await server.fail();
  server.clock.advance(1000);
  await server.answer(300);
  t.equal(server.saidOf('an earlier poll was lost'), 1);
  t.match(server.counts, { gaps: 4, clearedRanks: 4, lostBatches: 7 + 1 + 1 + 6 + 80, restarts: 0 });
  t.equal(server.translators, 1, 'it is the same server');
  await server.source.close();
});

t.test('ids that begin anew: another process, all ranks of it', async t => {
  const server = new Scripted();
  await server.answer(0, 1, [0, 1], [5, 2]);
  await server.take();
  await server.answer(0, [0, 1], 1, [0, 2]);
  t.same(await server.take(), ['clear', '0 0 1 0']);
  t.match(server.counts, { restarts: 1, gaps: 0 });
  t.equal(server.translators, 2);
  await server.source.close();
});

t.test('an answer that is none: cleared, and followed on from the next one', async t => {
  const server = new Scripted();
  await server.answer(0, 1);
  await server.take();
  await server.end(200, '{"id":');
  t.same(await server.take(), ['clear']);
  t.match(server.counts, { badFrames: 1, pollFailures: 1 });
  server.clock.advance(250);
  await server.answer(5);
  t.same([await server.take(), server.counts.gaps], [['5'], 0]);
  await server.source.close();
});

t.test('failures: later and later, guessed after five, followed anew when it answers', async t => {
  const server = new Scripted();
  await server.answer(0);
  await server.take();
  const delays: number[] = [];
  for (let failure = 1; failure <= 9; failure += 1) {
    if (failure % 2 === 0) await server.fail();
    else await server.end(500, '');
    t.same(await server.take(), failure === 5 ? ['guess'] : [], `failure ${failure}`);
    delays.push(server.clock.nextInMs()!);
    server.clock.advance(delays.at(-1)!);
  }
  t.same(delays, [125, 250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
  t.equal(server.saidOf('a poll for KV events failed'), 1);
  await server.answer(3);
  t.same(await server.take(), ['follow', '3']);
  await server.fail();
  t.equal(server.clock.nextInMs(), 125, 'one answer forgives');
  await server.source.close();
});

t.test('no such route: guessed at once, said once', async t => {
  const server = new Scripted();
  for (const status of [404, 405]) {
    await server.end(status, '');
    t.equal(server.clock.nextInMs(), 15_000);
    server.clock.advance(15_000);
  }
  t.equal(server.saidOf('has no route'), 1);
  await server.answer(0);
  await server.end(404, '');
  t.same(await server.take(), ['follow', '0', 'guess']);
  await server.source.close();
});

t.test('a worker that does not answer is left alone until it does', async t => {
  for (const hasAnswered of [true, false]) {
    const server = new Scripted();
    if (hasAnswered) await server.answer(0);
    server.source.pause();
    // A guess is void; what events have said is kept until the next ids tell.
    t.same(await server.take(), hasAnswered ? ['follow', '0'] : ['guess']);
    await server.fail();
    t.same([server.running, server.clock.nextInMs()], [0, null]);
    server.source.resume();
    server.source.resume();
    t.equal(server.running, 1);
    await server.answer(1);
    t.same(await server.take(), hasAnswered ? ['1'] : ['follow', '1']);
    await server.source.close();
    await new Promise(setImmediate);
    t.same([await server.take(), server.clock.nextInMs()], [[], null]);
  }
});

const drawHash = (): EngineBlockHash => {
  const bits = [0, 0].map(() => BigInt(Math.floor(random() * 2 ** 32)));
  const text = ((bits[0]! << 32n) | bits[1]!).toString(16).padStart(16, '0');
  return random() < 0.5 ? BigInt(`0x${text}`) : text.repeat(4);
};

/** Words of a hash as the tables have them. */
function wordsOf(hash: EngineBlockHash): number[] {
  const value = typeof hash === 'bigint' ? hash : BigInt(`0x${hash}`) & ((1n << 128n) - 1n);
  return [0, 1, 2, 3].map(word => Number((value >> BigInt(32 * word)) & 0xffff_ffffn));
}

function drawStore(): StoredBlocks {
  const blockSize = 1 + Math.floor(random() * 40);
  const token = (): number => Math.floor(random() * 2 ** (4 + Math.floor(random() * 29)));
  return {
    parent: random() < 0.5 ? null : drawHash(),
    blocks: Array.from({ length: Math.floor(random() ** 4 * 900) }, () => ({
      hash: drawHash(),
      tokens: Array.from({ length: blockSize }, token),
    })),
    blockSize,
    adapter: random() < 0.3 ? 'adapter' : null,
    adapterId: random() < 0.3 ? 3 : null,
    salt: random() < 0.3 ? 'salt' : null,
  };
}

/** Writes random stores and reads them back out of the decoder's tables, in order, as one list of blocks. */
async function roundTrip(t: Test, decoder: Awaited<ReturnType<typeof createEventDecoder>>): Promise<void> {
  const read: unknown[] = [];
  const { rows, hashes, tokens, parents } = decoder.tables;
  const writer = new BatchWriter(payload => {
    const count = decoder.decode(payload);
    t.ok(count > 0, 'the batch is read');
    for (let row = 0; row < count; row += 1) {
      const word = (column: number): number => rows[row * EVENT_ROW_WORDS + column]!;
      const blockSize = word(EVENT_ROW.blockSize);
      for (let at = 0; at < word(EVENT_ROW.blocks); at += 1) {
        const block = word(EVENT_ROW.firstBlock) + at;
        const from = word(EVENT_ROW.firstToken) + at * blockSize;
        const before =
          at > 0 ? hashes.slice((block - 1) * 4, block * 4) : parents.slice(row * 4, row * 4 + 4);
        const hasParent = at > 0 || word(EVENT_ROW.hasParent) === 1;
        read.push([
          [...hashes.slice(block * 4, block * 4 + 4)],
          hasParent ? [...before] : null,
          [...tokens.slice(from, from + blockSize)],
          word(EVENT_ROW.adapterBytes) > 0,
          word(EVENT_ROW.hasAdapterId) === 1,
          at === 0 && word(EVENT_ROW.saltBytes) > 0,
          word(EVENT_ROW.kind),
        ]);
      }
    }
  });
  const written: unknown[] = [];
  for (let round = 0; round < 40; round += 1) {
    const stored = drawStore();
    writer.store(stored);
    for (const [at, { hash, tokens: ids }] of stored.blocks.entries()) {
      const before = at === 0 ? stored.parent : stored.blocks[at - 1]!.hash;
      written.push([
        wordsOf(hash),
        before === null ? null : wordsOf(before),
        ids,
        stored.adapter !== null,
        stored.adapter === null && stored.adapterId !== null,
        at === 0 && stored.salt !== null,
        EVENT_KIND.store,
      ]);
    }
  }
  writer.flush();
  t.equal(read.length, written.length);
  const wrong = read.findIndex((block, at) => JSON.stringify(block) !== JSON.stringify(written[at]));
  if (wrong !== -1) t.same(read[wrong], written[wrong], `block ${wrong}`);
}

t.test('both decoders read what the writer writes', async t => {
  await roundTrip(t, await createEventDecoder());
  const addon = loadAddon();
  if (addon !== null) await roundTrip(t, createNativeDecoder(addon));
});
