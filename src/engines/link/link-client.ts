/**
 * LinkClient (R5): the plane's end of one worker link. It admits the worker side, then starts calls as EngineClient does,
 * but as streams of the link, and hands on the worker's KV events and health. Made by LinkServer for each connection;
 * owned by one socket thread. A call that cannot be told apart from one over HTTP: the same sink, the same faults.
 */
import type { Socket } from 'node:net';
import type { Clock } from '../../runtime/clock.js';
import type { EngineCall, EngineFault } from '../client.js';
import type { AnswerClient, AnswerRequest, EngineHealth, LinkedWorker, RowSink } from './contract.js';
import { type LinkFrame, payloadOf } from './frame-reader.js';
import { LinkConnection, type LinkTraffic } from './link-connection.js';
import { PlaneHandshake } from './link-handshake.js';
import { decodeEvents, decodeFail, decodeHead, decodeHealth, encodeOpening } from './link-messages.js';
import {
  FINISH_CODES,
  HEAD_BYTES_MAX,
  LINK_CAPABILITIES,
  LINK_CAPABILITY,
  LINK_FLAG,
  LINK_KIND,
  type LinkFault,
  type LinkLimits,
  STEP_ENTRY,
  STEP_ENTRY_BYTES,
  STREAM_ID_MAX,
} from './link-protocol.js';
import { RowBatch } from './link-rows.js';
import { LinkStream } from './link-stream.js';

/** Whom a LinkClient tells. `onOpen` first; `onClosed` last and once, also for a peer that was never admitted. */
export interface LinkEvents {
  onOpen(link: LinkClient): void;
  /** One batch of a rank, as the engine packed it; null: what came before is void. In order, without gaps. */
  onEvents(link: LinkClient, rank: number, batch: Uint8Array | null): void;
  onHealth(link: LinkClient, health: EngineHealth): void;
  onClosed(link: LinkClient, fault: LinkFault): void;
}

/** What a LinkClient needs. */
export interface LinkClientOptions {
  readonly socket: Socket;
  readonly secret: Uint8Array | null;
  readonly nonce: Uint8Array;
  readonly clock: Clock;
  readonly limits: LinkLimits;
  readonly events: LinkEvents;
  /** Ports of the plane's lanes, 0 for a unix socket; none: the streams go over this connection. */
  readonly lanes: readonly number[];
  readonly traffic: LinkTraffic;
}

const FAULT_MESSAGES = {
  closed: 'the link to the worker ended before its answer was complete',
  overloaded: 'the link of the worker takes no more requests now',
} as const;

/** See the head of the file. */
export class LinkClient implements AnswerClient {
  readonly #options: LinkClientOptions;
  readonly #connection: LinkConnection;
  readonly #handshake: PlaneHandshake;
  readonly #rows = new RowBatch();
  readonly #streams = new Map<number, LinkStream>();
  /** Streams that were cancelled and not ended by the peer yet, by the time of their CANCEL. */
  readonly #cancelled = new Map<number, number>();
  /** Next EVENTS of each rank. */
  readonly #eventsDue = new Map<number, number>();
  #worker: LinkedWorker | null = null;
  #capabilities = 0;
  #bodyWindowBytes = 0;
  #lastId = 0;
  #isLeaving = false;

  constructor(options: LinkClientOptions) {
    const { socket, secret, nonce, clock, limits, traffic } = options;
    this.#options = options;
    this.#handshake = new PlaneHandshake({ secret, capabilities: LINK_CAPABILITIES, nonce });
    this.#connection = new LinkConnection({
      socket,
      clock,
      limits,
      traffic,
      onFrame: frame => (this.#worker === null ? this.#onHandshake(frame) : this.#onFrame(frame)),
      onClosed: fault => this.#onClosed(fault),
    });
  }

  /** What the worker side said of its engine; null until it is admitted. */
  get worker(): LinkedWorker | null {
    return this.#worker;
  }

  /** Calls can be started: it is open, not leaving, and has room for a stream. */
  get isAccepting(): boolean {
    const inFlight = this.#streams.size + this.#cancelled.size;
    return (
      this.#worker !== null &&
      !this.#isLeaving &&
      this.#connection.fault === null &&
      !this.#connection.isCongested &&
      this.#lastId < STREAM_ID_MAX &&
      inFlight < this.#options.limits.streamsMax
    );
  }

  /** Streams in flight. */
  get streams(): number {
    return this.#streams.size;
  }

  /** Starts a call; where `isAccepting` is false it ends with 'unreachable' in a microtask. `origin` is not looked at. */
  send(request: AnswerRequest, sink: RowSink): EngineCall {
    const { limits } = this.#options;
    const accepts = this.isAccepting;
    const id = accepts ? ++this.#lastId : 0;
    const stream = new LinkStream({
      id,
      sink,
      connection: this.#connection,
      rows: this.#rows,
      answerWindowBytes: limits.answerWindowBytes,
      body: request.body,
      onOver: (over, hasLeft) => this.#onOver(over, hasLeft),
    });
    if (!accepts) {
      queueMicrotask(() => stream.refuse(unreachable(FAULT_MESSAGES.overloaded)));
      return stream;
    }
    this.#streams.set(id, stream);
    const { method, path, head, body } = request;
    const opening = encodeOpening({ method, path, head, bodyBytes: body.length });
    const wantsRows = request.wantsRows && (this.#capabilities & LINK_CAPABILITY.steps) !== 0;
    const flags = LINK_FLAG.critical | (wantsRows ? LINK_FLAG.rows : 0);
    this.#connection.send(LINK_KIND.open, id, [opening], flags);
    stream.sendBody(this.#bodyWindowBytes);
    return stream;
  }

  /** Closes the link; running calls end with 'reset'. */
  close(): void {
    this.#connection.send(LINK_KIND.goaway, 0);
    this.#connection.close();
  }

  #onHandshake(frame: LinkFrame): boolean {
    const due = this.#handshake.isChallenged ? LINK_KIND.register : LINK_KIND.hello;
    if (frame.kind !== due) {
      this.#connection.fail(
        'handshake',
        `kind ${frame.kind} came where kind ${due} of the handshake was due`,
      );
    } else if (due === LINK_KIND.hello) {
      const { ok, fault } = this.#handshake.challenge(payloadOf(frame));
      if (fault !== null) this.#connection.fail(fault.kind, fault.message);
      else {
        this.#capabilities = ok.capabilities;
        this.#connection.send(LINK_KIND.challenge, 0, [ok.bytes]);
      }
    } else {
      const { ok, fault } = this.#handshake.admit(payloadOf(frame));
      if (fault !== null) this.#connection.fail(fault.kind, fault.message);
      else {
        this.#worker = ok.worker;
        this.#bodyWindowBytes = ok.bodyWindowBytes;
        this.#connection.establish();
        this.#welcome();
        this.#options.events.onOpen(this);
      }
    }
    return true;
  }

  #welcome(): void {
    const { limits, lanes } = this.#options;
    const takesLanes = (this.#capabilities & LINK_CAPABILITY.lanes) !== 0;
    const words = Uint32Array.of(limits.answerWindowBytes, ...(takesLanes ? lanes : []));
    this.#connection.send(LINK_KIND.welcome, 0, [new Uint8Array(words.buffer)]);
  }

  #onFrame(frame: LinkFrame): boolean {
    switch (frame.kind) {
      case LINK_KIND.step:
        this.#onStep(frame);
        return true;
      case LINK_KIND.head:
      case LINK_KIND.data:
      case LINK_KIND.end:
      case LINK_KIND.fail:
      case LINK_KIND.credit:
        this.#onStreamFrame(frame);
        return true;
      case LINK_KIND.events:
        this.#onEvents(frame);
        return true;
      case LINK_KIND.health:
        this.#options.events.onHealth(this, decodeHealth(payloadOf(frame)));
        return true;
      case LINK_KIND.goaway:
        this.#isLeaving = true;
        return true;
      default:
        return false;
    }
  }

  #onStep(frame: LinkFrame): void {
    const { view, words, bytes, end } = frame;
    const rows = this.#rows;
    let at = frame.start;
    while (at < end) {
      const id = end - at < STEP_ENTRY_BYTES ? 0 : view.getUint32(at + STEP_ENTRY.stream, true);
      const from = at;
      rows.clear(words);
      // Neighbouring entries of one stream are one batch.
      do {
        const isWhole = end - at >= STEP_ENTRY_BYTES;
        const count = isWhole ? view.getUint16(at + STEP_ENTRY.count, true) : 0;
        const finish = bytes[at + STEP_ENTRY.finish]!;
        if (!isWhole || at + STEP_ENTRY_BYTES + count * 4 > end || finish >= FINISH_CODES.length) {
          this.#connection.fail('protocol', 'a STEP whose entries do not fill it');
          return;
        }
        rows.add(bytes[at + STEP_ENTRY.choice]!, finish, (at + STEP_ENTRY_BYTES) >> 2, count);
        at += STEP_ENTRY_BYTES + count * 4;
      } while (at < end && !rows.isFull && view.getUint32(at + STEP_ENTRY.stream, true) === id);
      const stream = this.#streams.get(id);
      if (stream === undefined) {
        if (!this.#cancelled.has(id)) this.#unknown(id);
      } else if (!stream.takeRows(at - from)) this.#overrun(id);
      if (this.#connection.fault !== null) return;
    }
  }

  #onStreamFrame(frame: LinkFrame): void {
    const { kind, stream: id } = frame;
    const stream = this.#streams.get(id);
    const isEnd = kind === LINK_KIND.end || kind === LINK_KIND.fail;
    if (stream === undefined) {
      if (!this.#cancelled.has(id)) this.#unknown(id);
      else if (isEnd) this.#cancelled.delete(id);
      return;
    }
    const payload = payloadOf(frame);
    if (kind !== LINK_KIND.data && payload.length > HEAD_BYTES_MAX)
      this.#connection.fail('protocol', `kind ${kind} with ${payload.length} bytes`);
    else if (kind === LINK_KIND.data) {
      if (!stream.takeData(payload.slice())) this.#overrun(id);
    } else if (kind === LINK_KIND.head) {
      if (!stream.takeHead(decodeHead(payload)))
        this.#connection.fail('protocol', `stream ${id} began twice`);
    } else if (kind === LINK_KIND.credit) {
      if (payload.length !== 4) this.#connection.fail('protocol', 'a CREDIT that is no word');
      else stream.sendBody(frame.view.getUint32(frame.start, true));
    } else this.#onEnd(stream, kind === LINK_KIND.end ? null : faultOf(payload));
  }

  #onEnd(stream: LinkStream, fault: EngineFault | null): void {
    this.#streams.delete(stream.id);
    if (stream.takeEnd(fault)) return;
    this.#connection.fail('protocol', `stream ${stream.id} ended before it began`);
    stream.takeEnd(unanswered());
  }

  #onEvents(frame: LinkFrame): void {
    const { rank, sequence, batch } = decodeEvents(payloadOf(frame));
    if (sequence !== (this.#eventsDue.get(rank) ?? 0)) {
      this.#connection.fail('protocol', `events of rank ${rank} are out of order at ${sequence}`);
      return;
    }
    this.#eventsDue.set(rank, sequence + 1);
    const isCleared = (frame.flags & LINK_FLAG.cleared) !== 0;
    this.#options.events.onEvents(this, rank, isCleared ? null : batch);
  }

  #unknown(id: number): void {
    this.#connection.fail('protocol', `stream ${id} is not open`);
  }

  #overrun(id: number): void {
    this.#connection.fail('protocol', `stream ${id} sent more than it had credit for, or before its head`);
  }

  #onOver(stream: LinkStream, hasLeft: boolean): void {
    if (!this.#streams.delete(stream.id) || !hasLeft) return;
    const { clock, limits } = this.#options;
    const nowMs = clock.nowMs();
    const oldest = this.#cancelled.values().next();
    this.#cancelled.set(stream.id, nowMs);
    if (!oldest.done && nowMs - oldest.value > limits.cancelDeadlineMs)
      this.#connection.fail('protocol', `a cancelled stream did not end in ${limits.cancelDeadlineMs} ms`);
  }

  #onClosed(fault: LinkFault): void {
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    this.#cancelled.clear();
    this.#options.events.onClosed(this, fault);
    for (const stream of streams) stream.takeEnd(unanswered());
  }
}

const unreachable = (message: string): EngineFault => ({ kind: 'unreachable', message, cause: null });
const unanswered = (): EngineFault => ({ kind: 'reset', message: FAULT_MESSAGES.closed, cause: null });

function faultOf(payload: Uint8Array): EngineFault {
  const { fail, message } = decodeFail(payload);
  // The engine has seen nothing of a request that the link refused: another worker can have it.
  return { kind: fail === 'overloaded' ? 'unreachable' : fail, message, cause: null };
}
