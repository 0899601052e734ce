/**
 * WorkerSession (R5): one connection of a WorkerLink from its socket to its end: the handshake, the streams that the plane
 * opens, and the frames that go to no stream. Everything that the plane may ask for has a bound here, and what breaks the
 * protocol closes the connection. Owned by its WorkerLink.
 */
import type { Socket } from 'node:net';
import type { Clock } from '../../runtime/clock.js';
import type { EngineClient, EngineFault } from '../client.js';
import type { EngineStream } from '../contract.js';
import type { EngineHealth, LinkedWorker } from './contract.js';
import { type LinkFrame, payloadOf } from './frame-reader.js';
import { LinkConnection } from './link-connection.js';
import { WorkerHandshake } from './link-handshake.js';
import {
  decodeOpening,
  EVENTS_HEAD_BYTES,
  encodeEventsHead,
  encodeFail,
  encodeHealth,
  type Opening,
} from './link-messages.js';
import {
  HEAD_BYTES_MAX,
  LANES_MAX,
  LINK_CAPABILITIES,
  LINK_CAPABILITY,
  LINK_FLAG,
  LINK_KIND,
  type LinkFault,
  type LinkLimits,
  STEP_BYTES_MAX,
} from './link-protocol.js';
import { WorkerStream } from './worker-stream.js';

const PORT_MAX = 65_535;

/** What a session needs of its link. Nothing is called after `onClosed`. */
export interface WorkerSessionOptions {
  readonly socket: Socket;
  readonly secret: Uint8Array | null;
  readonly nonce: Uint8Array;
  readonly client: EngineClient;
  readonly origin: string;
  readonly worker: LinkedWorker;
  /** Decoder of an answer that the plane takes as rows; null: this engine's frames give none, and their bytes are relayed. */
  readonly openStream: () => EngineStream | null;
  readonly clock: Clock;
  readonly limits: LinkLimits;
  /** Admitted; the plane's lanes as in WELCOME. */
  readonly onUp: (lanes: readonly number[]) => void;
  /** Events were dropped because the plane did not keep up; it does now, and wants them from the begin. */
  readonly onEventsLost: () => void;
  /** A stream has ended; the fault of the engine's call, or null. */
  readonly onStreamOver: (fault: EngineFault | null) => void;
  readonly onClosed: (fault: LinkFault) => void;
}

/** See the head of the file. */
export class WorkerSession {
  readonly #options: WorkerSessionOptions;
  readonly #connection: LinkConnection;
  readonly #handshake: WorkerHandshake;
  readonly #streams = new Map<number, WorkerStream>();
  /** Next EVENTS of each rank. */
  readonly #eventsNext = new Map<number, number>();
  #bodiesBytes = 0;
  #lastId = 0;
  #capabilities = 0;
  #answerWindowBytes = 0;
  #isRegistered = false;
  #isUp = false;
  #isLeaving = false;
  #areEventsLost = false;

  constructor(options: WorkerSessionOptions) {
    const { socket, secret, nonce, clock, limits } = options;
    this.#options = options;
    this.#handshake = new WorkerHandshake({ secret, capabilities: LINK_CAPABILITIES, nonce });
    this.#connection = new LinkConnection({
      socket,
      clock,
      limits,
      onFrame: frame => (this.#isUp ? this.#onFrame(frame) : this.#onHandshake(frame)),
      onClosed: fault => this.#onClosed(fault),
      onCongested: () => {
        for (const stream of this.#streams.values()) stream.hold();
      },
      onDrain: () => this.#onDrain(),
    });
    this.#connection.send(LINK_KIND.hello, 0, [this.#handshake.hello()]);
  }

  get isUp(): boolean {
    return this.#isUp;
  }

  get streams(): number {
    return this.#streams.size;
  }

  /**
   * Sends the next batch of a rank, or null: what came before is void. A plane that does not keep up gets one such null
   * for each rank, and nothing more until it has caught up and `onEventsLost` has been called. Nothing is sent before `isUp`.
   */
  sendEvents(rank: number, batch: Uint8Array | null): void {
    if (!this.#isUp || this.#areEventsLost || (this.#capabilities & LINK_CAPABILITY.events) === 0) return;
    const { frameBytesMax, eventQueueBytesMax } = this.#options.limits;
    const bytes = EVENTS_HEAD_BYTES + (batch?.length ?? 0);
    if (batch === null || bytes > frameBytesMax) this.#sendEventsFrame(rank, null);
    else if (this.#connection.isCongested && this.#connection.unsentBytes + bytes > eventQueueBytesMax) {
      this.#areEventsLost = true;
      for (const known of new Set([...this.#eventsNext.keys(), rank])) this.#sendEventsFrame(known, null);
    } else this.#sendEventsFrame(rank, batch);
  }

  sendHealth(health: EngineHealth): void {
    if (this.#isUp) this.#connection.send(LINK_KIND.health, 0, [encodeHealth(health)]);
  }

  /** Asks the plane to open no more streams; one that it opens all the same is refused. */
  goAway(): void {
    this.#isLeaving = true;
    if (this.#isUp) this.#connection.send(LINK_KIND.goaway, 0);
  }

  close(): void {
    this.#connection.close();
  }

  #onHandshake(frame: LinkFrame): boolean {
    const due = this.#isRegistered ? LINK_KIND.welcome : LINK_KIND.challenge;
    if (frame.kind !== due) {
      this.#connection.fail(
        'handshake',
        `kind ${frame.kind} came where kind ${due} of the handshake was due`,
      );
    } else if (due === LINK_KIND.challenge) {
      const { worker, limits } = this.#options;
      const registration = { worker, bodyWindowBytes: limits.bodyWindowBytes };
      const { ok, fault } = this.#handshake.register(payloadOf(frame), registration);
      if (fault !== null) this.#connection.fail(fault.kind, fault.message);
      else {
        this.#isRegistered = true;
        this.#capabilities = ok.capabilities;
        this.#connection.send(LINK_KIND.register, 0, [ok.bytes]);
      }
    } else this.#onWelcome(frame);
    return true;
  }

  #onWelcome(frame: LinkFrame): void {
    const words = (frame.end - frame.start) / 4;
    if (!Number.isInteger(words) || words < 1 || words > 1 + LANES_MAX) {
      this.#connection.fail(
        'protocol',
        `WELCOME with ${words * 4} bytes; allowed: words, 1 to ${1 + LANES_MAX}`,
      );
      return;
    }
    const first = frame.start >> 2;
    const [bytes, ...lanes] = frame.words.subarray(first, first + words);
    if (bytes! < STEP_BYTES_MAX || lanes.some(port => port > PORT_MAX)) {
      this.#connection.fail(
        'protocol',
        `WELCOME with a window of ${bytes} bytes and lanes at ${lanes}; at least ${STEP_BYTES_MAX} bytes, and ports`,
      );
      return;
    }
    this.#answerWindowBytes = bytes!;
    this.#isUp = true;
    this.#connection.establish();
    this.#options.onUp(lanes);
  }

  #onFrame(frame: LinkFrame): boolean {
    const { kind, stream: id } = frame;
    if (kind === LINK_KIND.goaway) return true;
    if (kind === LINK_KIND.open) {
      this.#onOpen(frame);
      return true;
    }
    if (kind !== LINK_KIND.body && kind !== LINK_KIND.cancel && kind !== LINK_KIND.credit) return false;
    if (id === 0 || id > this.#lastId) {
      this.#connection.fail('protocol', `stream ${id} is not open`);
      return true;
    }
    // Of a stream that has ended: it was on its way when END or FAIL left.
    const stream = this.#streams.get(id);
    if (stream === undefined) return true;
    if (kind === LINK_KIND.cancel) stream.cancel();
    else if (kind === LINK_KIND.body) {
      if (!stream.takeBody(payloadOf(frame)))
        this.#connection.fail('protocol', `stream ${id} sent more body than it announced`);
    } else if (frame.end - frame.start !== 4) this.#connection.fail('protocol', 'a CREDIT that is no word');
    else stream.takeCredit(frame.view.getUint32(frame.start, true));
    return true;
  }

  #onOpen(frame: LinkFrame): void {
    const { stream: id } = frame;
    if (id <= this.#lastId) {
      this.#connection.fail('protocol', `stream ${id} was opened before; the last one was ${this.#lastId}`);
      return;
    }
    this.#lastId = id;
    const payload = payloadOf(frame);
    if (payload.length > HEAD_BYTES_MAX) {
      this.#connection.fail('protocol', `OPEN with ${payload.length} bytes; ${HEAD_BYTES_MAX} are allowed`);
      return;
    }
    const opening = decodeOpening(payload);
    const reason = this.#refusal(opening);
    if (reason !== null) {
      this.#connection.send(LINK_KIND.fail, id, [encodeFail('overloaded', reason)]);
      return;
    }
    const { client, origin, openStream, limits } = this.#options;
    const wantsRows = (frame.flags & LINK_FLAG.rows) !== 0;
    const stream = new WorkerStream({
      id,
      connection: this.#connection,
      client,
      origin,
      opening,
      answerWindowBytes: this.#answerWindowBytes,
      bodyWindowBytes: limits.bodyWindowBytes,
      openStream: wantsRows ? openStream : null,
      onOver: (over, fault) => this.#onOver(over, fault),
    });
    this.#bodiesBytes += opening.bodyBytes;
    this.#streams.set(id, stream);
    stream.begin();
  }

  #refusal({ bodyBytes }: Opening): string | null {
    const { streamsMax, bodyBytesMax, bodiesBytesMax } = this.#options.limits;
    if (this.#isLeaving) return 'the worker is leaving';
    if (this.#streams.size >= streamsMax) return `${streamsMax} streams are open`;
    if (bodyBytes > bodyBytesMax) return `a body of ${bodyBytes} bytes; ${bodyBytesMax} are allowed`;
    return this.#bodiesBytes + bodyBytes > bodiesBytesMax ? 'too many bytes of bodies are held' : null;
  }

  #sendEventsFrame(rank: number, batch: Uint8Array | null): void {
    const sequence = this.#eventsNext.get(rank) ?? 0;
    this.#eventsNext.set(rank, sequence + 1);
    const head = encodeEventsHead(rank, sequence);
    const parts = batch === null ? [head] : [head, batch];
    this.#connection.send(LINK_KIND.events, 0, parts, batch === null ? LINK_FLAG.cleared : 0);
  }

  #onDrain(): void {
    for (const stream of [...this.#streams.values()]) stream.goOn();
    if (!this.#areEventsLost) return;
    this.#areEventsLost = false;
    this.#options.onEventsLost();
  }

  #onOver(stream: WorkerStream, fault: EngineFault | null): void {
    if (!this.#streams.delete(stream.id)) return;
    this.#bodiesBytes -= stream.bodyBytes;
    this.#options.onStreamOver(fault);
  }

  #onClosed(fault: LinkFault): void {
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    for (const stream of streams) stream.drop();
    this.#options.onClosed(fault);
  }
}
