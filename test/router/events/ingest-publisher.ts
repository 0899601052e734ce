/** An engine's event publisher on loopback, as vLLM makes it: PUB, and a ROUTER that serves the last batches again. */
import { once } from 'node:events';
import { createServer } from 'node:net';
import { Packr } from 'msgpackr';
import { Publisher, Router } from 'zeromq';

const packr = new Packr({ useRecords: false });
const END = Buffer.alloc(8, 0xff);

/** The batch that publisher process `epoch` sends as its number `n`; its time rises with both. */
export const batchOf = (epoch: number, n: number): Buffer => packr.pack([epoch * 1_000_000 + n + 0.5, [], 0]);
/** `epoch/n` of such a batch. */
export function nameOf(payload: Uint8Array): string {
  const at = packr.unpack(payload)[0] - 0.5;
  return `${Math.floor(at / 1_000_000)}/${at % 1_000_000}`;
}

/** The eight bytes of a sequence number. */
export function sequenceBytes(sequence: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(sequence));
  return bytes;
}

/** A loopback endpoint that nobody listens on now. */
export async function freeEndpoint(): Promise<string> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return `tcp://127.0.0.1:${port}`;
}

/** One publisher process. */
export class LoopbackPublisher {
  readonly publish: string;
  readonly replay: string;
  readonly #epoch: number;
  readonly #ringMax: number;
  readonly #publisher = new Publisher({ linger: 0 });
  readonly #router = new Router({ linger: 0 });
  readonly #ring: [number, Buffer][] = [];
  #serving: Promise<void> = Promise.resolve();
  #next = 0;
  /** The ROUTER drops the terminator, as it does when its queue is full. */
  losesEnd = false;
  /** Replays have a topic frame, as those of newer engines. */
  replaysTopic = false;
  /** Start numbers that were asked for. */
  readonly asked: number[] = [];

  private constructor(epoch: number, ringMax: number, publish: string, replay: string) {
    this.#epoch = epoch;
    this.#ringMax = ringMax;
    this.publish = publish;
    this.replay = replay;
  }

  /** Binds, to the endpoints of `before` when it takes the place of a process that was killed. */
  static async start(
    epoch: number,
    ringMax = 10_000,
    before?: LoopbackPublisher,
  ): Promise<LoopbackPublisher> {
    const publish = before?.publish ?? (await freeEndpoint());
    const replay = before?.replay ?? (await freeEndpoint());
    const made = new LoopbackPublisher(epoch, ringMax, publish, replay);
    await bindWhenFree(made.#publisher, publish);
    await bindWhenFree(made.#router, replay);
    made.#serving = made.#serve();
    return made;
  }

  /** The number of the next batch. */
  get next(): number {
    return this.#next;
  }

  /** Makes `count` batches; only their place in the ring is kept when the network loses them. */
  async send(count = 1, isLost = false): Promise<void> {
    for (let n = 0; n < count; n += 1) {
      const sequence = this.#next++;
      const payload = batchOf(this.#epoch, sequence);
      this.#ring.push([sequence, payload]);
      if (this.#ring.length > this.#ringMax) this.#ring.shift();
      if (!isLost) await this.sendFrames(['kv', sequenceBytes(sequence), payload]);
    }
  }

  /** Resolves when a subscriber has connected; it may still miss some messages. */
  async connected(): Promise<void> {
    while ((await this.#publisher.events.receive()).type !== 'handshake');
  }

  sendFrames(frames: (string | Buffer)[]): Promise<void> {
    return this.#publisher.send(frames);
  }

  async kill(): Promise<void> {
    this.#publisher.close();
    this.#router.close();
    await this.#serving;
  }

  async #serve(): Promise<void> {
    try {
      while (!this.#router.closed) {
        const [client, empty, start] = await this.#router.receive();
        const from = Number(start!.readBigUInt64BE());
        this.asked.push(from);
        const head = this.replaysTopic ? [client!, empty!, ''] : [client!, empty!];
        for (const [sequence, payload] of this.#ring)
          if (sequence >= from) await this.#router.send([...head, sequenceBytes(sequence), payload]);
        if (!this.losesEnd) await this.#router.send([...head, END, '']);
      }
    } catch (error) {
      if (!this.#router.closed) throw error;
    }
  }
}

/** A killed process's port takes a moment to be free. */
async function bindWhenFree(socket: Publisher | Router, endpoint: string): Promise<void> {
  for (;;) {
    try {
      await socket.bind(endpoint);
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
      await new Promise(setImmediate);
    }
  }
}
