/**
 * The KV events of one mock engine as a whole: their settings, the encoder that listens to the block pool, and the
 * publisher that its batches go to. Opened before the engine, which is given the encoder, and closed after it.
 */
import { lookup } from 'node:dns/promises';
import { ConfigError } from '../../errors.js';
import type { Clock } from '../../runtime/clock.js';
import type { Random } from '../../runtime/random.js';
import {
  EVENT_FORMS,
  EVENT_HASHES,
  type EventForm,
  type EventHashes,
  KvEventEncoder,
} from './kv-event-encoder.js';
import { KvEventPublisher } from './kv-event-publisher.js';

/** Settings of a mock engine's KV events; the defaults are vLLM's. */
export interface MockEventOptions {
  /** Of the PUB socket; 0, the default, lets the system choose. */
  readonly port?: number;
  /** Of the replay socket; 0, the default, lets the system choose. */
  readonly replayPort?: number;
  /** Default `array`. */
  readonly form?: EventForm;
  /** Default `int`, for the form `sglang` `signed`. */
  readonly hashes?: EventHashes;
  /** Probability that a batch is not sent live though it can be replayed; default 0. */
  readonly loss?: number;
  /** Batches that are kept for replay; default 10,000. */
  readonly bufferBatches?: number;
  /** First frame of each message; default empty. */
  readonly topic?: string;
}

const PORT_MAX = 65_535;
const BUFFER_BATCHES_MAX = 1_000_000;
const BUFFER_BATCHES = 10_000;
const TOPIC_LENGTH_MAX = 256;

/** What the events share with their engine. */
export interface KvEventContext {
  readonly host: string;
  readonly blockSize: number;
  /** 64 random bits that no other engine has; see KvEventFormat. */
  readonly hashSeed: readonly [number, number];
  /** Draws the losses. */
  readonly random: Random;
  readonly clock: Clock;
}

function check(param: string, ok: boolean, allowed: string, got: unknown): void {
  if (!ok)
    throw new ConfigError(`events.${param} must be ${allowed}; got ${String(got)}`, {
      param: `events.${param}`,
    });
}

function checkInteger(param: string, value: number, min: number, max: number): void {
  const ok = Number.isInteger(value) && value >= min && value <= max;
  check(param, ok, `an integer from ${min} to ${max}`, value);
}

/** See the head of the file. */
export class KvEvents {
  readonly encoder: KvEventEncoder;
  readonly publisher: KvEventPublisher;
  readonly #clock: Clock;

  private constructor(encoder: KvEventEncoder, publisher: KvEventPublisher, clock: Clock) {
    this.encoder = encoder;
    this.publisher = publisher;
    this.#clock = clock;
  }

  /** Opens the sockets. Rejects with a ConfigError for a wrong setting or without ZeroMQ, or when it cannot listen. */
  static async open(options: MockEventOptions, context: KvEventContext): Promise<KvEvents> {
    const { port = 0, replayPort = 0, form = 'array', loss = 0, topic = '' } = options;
    const { bufferBatches = BUFFER_BATCHES } = options;
    const hashes = options.hashes ?? (form === 'sglang' ? 'signed' : 'int');
    checkInteger('port', port, 0, PORT_MAX);
    checkInteger('replayPort', replayPort, 0, PORT_MAX);
    checkInteger('bufferBatches', bufferBatches, 1, BUFFER_BATCHES_MAX);
    check('form', EVENT_FORMS.includes(form), `one of ${EVENT_FORMS.join(', ')}`, form);
    check('hashes', EVENT_HASHES.includes(hashes), `one of ${EVENT_HASHES.join(', ')}`, hashes);
    check('loss', loss >= 0 && loss <= 1, 'a number from 0 to 1', loss);
    check('topic', topic.length <= TOPIC_LENGTH_MAX, `at most ${TOPIC_LENGTH_MAX} characters`, topic);
    const { blockSize, hashSeed, random, clock } = context;
    const { address: host } = await lookup(context.host);
    const publisher = await KvEventPublisher.open({
      host,
      port,
      replayPort,
      topic,
      // Both came with vLLM's newer releases.
      replaysTopic: form === 'map',
      bufferBatches,
      loss,
      random,
    });
    return new KvEvents(new KvEventEncoder({ form, hashes, blockSize, hashSeed }), publisher, clock);
  }

  /** Publishes what happened since the last call, if anything did: called after each pass. */
  flush(): void {
    const batch = this.encoder.takeBatch(this.#clock.wallMs());
    if (batch !== null) this.publisher.send(batch);
  }
}
