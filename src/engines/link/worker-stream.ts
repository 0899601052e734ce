/**
 * WorkerStream (R5): the worker side of one stream: it collects the request's body, calls the engine, decodes the answer
 * into STEP entries where the plane wants rows, and sends what the plane's credit allows. What comes beyond is kept, at
 * most what one read of the connection brought, and the engine is paused. Owned by its PlaneLink.
 */
import type { AnswerSink, EngineCall, EngineClient, EngineFault, EngineHeaders } from '../client.js';
import type { EngineStream, FrameBatch, StreamFault } from '../contract.js';
import { rowStart } from '../event-rows.js';
import { FRAME } from '../frame-descriptor.js';
import type { LinkConnection } from './link-connection.js';
import { encodeFail, encodeHead, type Opening } from './link-messages.js';
import { LINK_KIND, type LinkFail, STEP_BYTES_MAX, STEP_ENTRY_BYTES } from './link-protocol.js';
import { entryFinish, NOT_AN_ENTRY } from './link-rows.js';

/** What a stream needs of its link. */
export interface WorkerStreamOptions {
  readonly id: number;
  readonly connection: LinkConnection;
  readonly client: EngineClient;
  /** Origin at which the engine is reached from here. */
  readonly origin: string;
  readonly opening: Opening;
  /** Credit that the plane's side begins with; that of the body. */
  readonly answerWindowBytes: number;
  readonly bodyWindowBytes: number;
  /** Decoder of a streamed answer; null, or none opened: the bytes are relayed as they are. */
  readonly openStream: (() => EngineStream | null) | null;
  /** Called once, when END or FAIL was sent. */
  readonly onOver: (stream: WorkerStream, fault: EngineFault | null) => void;
}

/** What waits for credit. */
type Waiting =
  | { readonly kind: 'data'; readonly bytes: Uint8Array }
  | { readonly kind: 'entry'; readonly choice: number; readonly finish: number; readonly ids: Uint32Array };

const FAULT_WORDS: Readonly<Record<StreamFault, string>> = {
  frameTooLong: 'a frame of the worker is longer than allowed',
  malformed: 'a frame of the worker is not valid',
  truncated: 'the worker ended its answer in the middle',
};

/** See the head of the file. */
export class WorkerStream implements AnswerSink {
  readonly id: number;
  /** Bytes of the body that are held for it. */
  readonly bodyBytes: number;
  readonly #options: WorkerStreamOptions;
  #call: EngineCall | null = null;
  #body: Uint8Array | null;
  #bodyFill = 0;
  #decoder: EngineStream | null = null;
  #credit: number;
  readonly #waiting: Waiting[] = [];
  #isEnded = false;
  #isOver = false;

  constructor(options: WorkerStreamOptions) {
    const { id, connection, opening, bodyWindowBytes } = options;
    this.id = id;
    this.#options = options;
    this.#credit = options.answerWindowBytes;
    this.bodyBytes = opening.bodyBytes;
    this.#body = new Uint8Array(opening.bodyBytes);
    // The whole of it is reserved already, so the plane may send it all.
    if (opening.bodyBytes > bodyWindowBytes)
      connection.sendWord(LINK_KIND.credit, id, opening.bodyBytes - bodyWindowBytes);
  }

  /** Calls the engine where the body has come; to be called once more after each `takeBody`. */
  begin(): void {
    const { client, origin, opening } = this.#options;
    if (this.#isOver || this.#body === null || this.#bodyFill < this.bodyBytes) return;
    const { method, path, head } = opening;
    const body = this.#body;
    this.#body = null;
    this.#call = client.send({ origin, method, path, head, body }, this);
  }

  /** A piece of the body. False: more than was announced. */
  takeBody(bytes: Uint8Array): boolean {
    if (this.#body === null || this.#bodyFill + bytes.length > this.bodyBytes) return false;
    this.#body.set(bytes, this.#bodyFill);
    this.#bodyFill += bytes.length;
    this.begin();
    return true;
  }

  /** The plane can take `bytes` more; sends what waited and lets the engine go on. */
  takeCredit(bytes: number): void {
    this.#credit += bytes;
    this.goOn();
  }

  /** Sends what waits as far as credit and socket allow. */
  goOn(): void {
    if (this.#isOver) return;
    const waiting = this.#waiting;
    let at = 0;
    while (at < waiting.length && this.#mayPass(waiting[at]!)) {
      const item = waiting[at]!;
      if (item.kind === 'entry') {
        this.#pass(item.choice, item.finish, item.ids, 0, item.ids.length);
        at++;
      } else {
        const rest = this.#passBytes(item.bytes);
        if (rest === null) at++;
        else waiting[at] = { kind: 'data', bytes: rest };
      }
    }
    waiting.splice(0, at);
    if (waiting.length > 0) return;
    if (this.#isEnded) this.#finish();
    else if (!this.#options.connection.isCongested) this.#call?.resume();
  }

  /** The socket takes no more for now: the engine pauses until `goOn`. */
  hold(): void {
    this.#call?.pause();
  }

  /** The plane wants no more: the engine's connection closes, the stream ends with FAIL. */
  cancel(): void {
    this.#call?.abort();
    this.#fail('aborted', 'the call was ended by the plane');
  }

  /** The link is gone: the engine's connection closes and nothing is sent. */
  drop(): void {
    this.#isOver = true;
    this.#call?.abort();
  }

  onHead(status: number, contentType: string, headers: EngineHeaders): void {
    if (this.#isOver) return;
    const { openStream, connection } = this.#options;
    if (openStream !== null && status === 200 && contentType.startsWith('text/event-stream'))
      this.#decoder = openStream();
    connection.send(LINK_KIND.head, this.id, [encodeHead(status, headers)]);
  }

  onData(chunk: Uint8Array): void {
    if (this.#isOver) return;
    if (this.#decoder === null) this.#sendBytes(chunk);
    else {
      const fault = this.#decoder.push(chunk, batch => this.#takeBatch(batch));
      if (fault !== null) {
        this.#call?.abort();
        this.#fail('protocol', FAULT_WORDS[fault]);
        return;
      }
    }
    if (this.#waiting.length > 0 || this.#options.connection.isCongested) this.#call?.pause();
  }

  onEnd(): void {
    if (this.#isOver) return;
    this.#isEnded = true;
    if (this.#waiting.length === 0) this.#finish();
  }

  onError(fault: EngineFault): void {
    this.#fail(fault.kind, fault.message, fault);
  }

  /** Rows that an entry can carry go into the STEP; the others as the bytes of their frame, in the same order. */
  #takeBatch(batch: FrameBatch): void {
    const { table, ids, bytes } = batch;
    for (let row = 0; row < batch.count; row++) {
      const at = rowStart(row);
      const finish = entryFinish(batch, row);
      if (finish === NOT_AN_ENTRY) {
        this.#sendBytes(bytes.subarray(table[at + FRAME.start]!, table[at + FRAME.end]!));
        continue;
      }
      const choice = table[at + FRAME.choice]!;
      const first = table[at + FRAME.idsFirst]!;
      const count = table[at + FRAME.idsCount]!;
      if (this.#waiting.length === 0 && this.#credit >= STEP_ENTRY_BYTES + count * 4)
        this.#pass(choice, finish, ids, first, count);
      else this.#waiting.push({ kind: 'entry', choice, finish, ids: ids.slice(first, first + count) });
    }
  }

  #mayPass(item: Waiting): boolean {
    return this.#credit >= (item.kind === 'entry' ? STEP_ENTRY_BYTES + item.ids.length * 4 : 1);
  }

  #pass(choice: number, finish: number, ids: Uint32Array, first: number, count: number): void {
    this.#credit -= this.#options.connection.sendEntry(this.id, choice, finish, ids, first, count);
  }

  #sendBytes(bytes: Uint8Array): void {
    const rest = this.#waiting.length === 0 ? this.#passBytes(bytes) : bytes;
    if (rest !== null) this.#waiting.push({ kind: 'data', bytes: rest });
  }

  /** Sends as much as the credit allows; what is left, or null. */
  #passBytes(bytes: Uint8Array): Uint8Array | null {
    let at = 0;
    while (at < bytes.length && this.#credit > 0) {
      const count = Math.min(bytes.length - at, this.#credit, STEP_BYTES_MAX);
      this.#options.connection.send(LINK_KIND.data, this.id, [bytes.subarray(at, at + count)]);
      this.#credit -= count;
      at += count;
    }
    return at === bytes.length ? null : bytes.subarray(at);
  }

  #finish(): void {
    this.#isOver = true;
    this.#options.connection.send(LINK_KIND.end, this.id);
    this.#options.onOver(this, null);
  }

  #fail(fail: LinkFail, message: string, fault: EngineFault | null = null): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#options.connection.send(LINK_KIND.fail, this.id, [encodeFail(fail, message)]);
    this.#options.onOver(this, fault);
  }
}
