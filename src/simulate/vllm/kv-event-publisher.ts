/**
 * The sockets by which a mock engine publishes its KV events, with the protocol of vLLM's `ZmqEventPublisher`: a PUB
 * socket that sends `[topic, sequence, batch]`, and a ROUTER that sends again the last batches to whoever asks. Can
 * lose batches on purpose, counted, to prove that a reader notices. One per mock engine, on its thread; must be closed.
 */
import type * as Zeromq from 'zeromq';
import { ConfigError, MillraceError } from '../../errors.js';
import type { Random } from '../../runtime/random.js';

/** vLLM's `hwm`: messages that wait for a slow reader before its next ones are dropped. */
const WAITING_MAX = 100_000;
/** Bound of the batches kept for replay, beside their number. */
const KEPT_BYTES_MAX = 64 * 1024 * 1024;
const SEQUENCE_BYTES = 8;
/** Sequence number that ends a replay: −1. */
const REPLAY_END = Buffer.alloc(SEQUENCE_BYTES, 0xff);
const EMPTY = Buffer.alloc(0);

/** Where and how an engine publishes. */
export interface KvEventPublisherOptions {
  /** Name or address of the interface to listen on. */
  readonly host: string;
  /** Of the PUB socket; 0: chosen by the system. */
  readonly port: number;
  /** Of the replay socket; 0: chosen by the system. */
  readonly replayPort: number;
  readonly topic: string;
  /** Batches kept for replay. */
  readonly bufferBatches: number;
  /** Probability that a batch is not sent live. It is kept for replay all the same. */
  readonly loss: number;
  /** Draws the losses. */
  readonly random: Random;
  /** A replayed batch carries the topic, as vLLM 0.32.0 sends it; older releases leave that frame out. */
  readonly replaysTopic: boolean;
}

/** What a publisher did since its start, restarts included. */
export interface KvEventCounters {
  /** Batches that were sent live. */
  published: number;
  /** Batches that were not, by `loss`. */
  dropped: number;
  /** Replays that were answered to their end. */
  replaysServed: number;
}

interface Batch {
  readonly sequence: number;
  /** `sequence` as eight bytes, big-endian. */
  readonly frame: Buffer;
  readonly payload: Buffer;
}

/** Loads the binding of ZeroMQ. Throws a ConfigError that names the reason when it cannot be loaded. */
export async function loadZeromq(
  load: () => Promise<typeof Zeromq> = () => import('zeromq'),
): Promise<typeof Zeromq> {
  try {
    return await load();
  } catch (cause) {
    const why = (cause as Error).message.split('\n', 1)[0];
    throw new ConfigError(`KV events need the package zeromq, and its binary does not load here: ${why}`, {
      param: 'events',
      cause,
    });
  }
}

async function bind(socket: Zeromq.Publisher | Zeromq.Router, host: string, port: number): Promise<string> {
  const address = `tcp://${host.includes(':') ? `[${host}]` : host}:${port === 0 ? '*' : port}`;
  try {
    await socket.bind(address);
  } catch (cause) {
    const why = (cause as Error).message;
    throw new MillraceError('MILLRACE_INTERNAL', `KV events cannot be published at ${address}: ${why}`, {
      cause,
    });
  }
  return socket.lastEndpoint!;
}

/** See the head of the file. */
export class KvEventPublisher {
  /** Endpoint of the PUB socket, such as `tcp://127.0.0.1:5557`. */
  readonly publish: string;
  /** Endpoint of the replay ROUTER. */
  readonly replay: string;
  readonly counters: KvEventCounters = { published: 0, dropped: 0, replaysServed: 0 };
  readonly #options: KvEventPublisherOptions;
  readonly #topic: Buffer;
  readonly #publisher: Zeromq.Publisher;
  readonly #router: Zeromq.Router;
  readonly #serving: Promise<void>;
  /** By sequence number, oldest first. */
  readonly #kept = new Map<number, Batch>();
  #keptBytes = 0;
  #next = 0;

  private constructor(
    options: KvEventPublisherOptions,
    sockets: readonly [Zeromq.Publisher, Zeromq.Router],
    endpoints: readonly [string, string],
  ) {
    this.#options = options;
    this.#topic = Buffer.from(options.topic);
    [this.#publisher, this.#router] = sockets;
    [this.publish, this.replay] = endpoints;
    this.#serving = this.#serve();
  }

  /** Opens both sockets. Rejects with a ConfigError without ZeroMQ, or with the reason why it cannot listen. */
  static async open(options: KvEventPublisherOptions): Promise<KvEventPublisher> {
    const { Publisher, Router } = await loadZeromq();
    const { host, port, replayPort, bufferBatches } = options;
    const shared = { linger: 0, ipv6: host.includes(':') };
    // A PUB socket never waits for a reader: without a time-out `send` is done when it returns.
    const publisher = new Publisher({ ...shared, sendHighWaterMark: WAITING_MAX, sendTimeout: 0 });
    // A ROUTER drops what is above its mark: a whole replay and its end must fit.
    const router = new Router({ ...shared, sendHighWaterMark: bufferBatches + 1 });
    try {
      const endpoints = [await bind(publisher, host, port), await bind(router, host, replayPort)] as const;
      return new KvEventPublisher(options, [publisher, router], endpoints);
    } catch (error) {
      publisher.close();
      router.close();
      throw error;
    }
  }

  /** Sends one batch, unless it is lost, and keeps it for replay. `payload` must not change any more. */
  send(payload: Buffer): void {
    const { loss, random, bufferBatches } = this.#options;
    const sequence = this.#next++;
    const frame = Buffer.alloc(SEQUENCE_BYTES);
    frame.writeBigUInt64BE(BigInt(sequence));
    if (loss > 0 && random() < loss) this.counters.dropped++;
    else {
      void this.#publisher.send([this.#topic, frame, payload]);
      this.counters.published++;
    }
    this.#kept.set(sequence, { sequence, frame, payload });
    this.#keptBytes += payload.length;
    while (this.#kept.size > bufferBatches || this.#keptBytes > KEPT_BYTES_MAX) this.#forgetOldest();
  }

  /** Begins anew as the publisher of a new process does: at sequence number 0, with nothing to replay. */
  restart(): void {
    this.#next = 0;
    this.#kept.clear();
    this.#keptBytes = 0;
  }

  /** Closes both sockets; what waits for a slow reader is lost. */
  async close(): Promise<void> {
    this.#publisher.close();
    this.#router.close();
    await this.#serving;
  }

  #forgetOldest(): void {
    const sequence = this.#next - this.#kept.size;
    this.#keptBytes -= this.#kept.get(sequence)!.payload.length;
    this.#kept.delete(sequence);
  }

  async #serve(): Promise<void> {
    try {
      for await (const frames of this.#router) {
        const [identity, , start] = frames;
        if (frames.length === 3 && start!.length === SEQUENCE_BYTES)
          await this.#serveReplay(identity!, start!.readBigUInt64BE());
      }
    } catch (error) {
      if (!this.#router.closed) throw error;
    }
  }

  async #serveReplay(identity: Buffer, start: bigint): Promise<void> {
    // What is kept changes while this waits for the reader.
    const batches = [...this.#kept.values()].filter(({ sequence }) => sequence >= start);
    const { replaysTopic } = this.#options;
    const head = replaysTopic ? [identity, EMPTY, this.#topic] : [identity, EMPTY];
    for (const { frame, payload } of batches) await this.#router.send([...head, frame, payload]);
    const end = replaysTopic ? [identity, EMPTY, EMPTY] : [identity, EMPTY];
    await this.#router.send([...end, REPLAY_END, EMPTY]);
    this.counters.replaysServed++;
  }
}
