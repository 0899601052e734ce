/**
 * LinkStream (R5): the plane's end of one stream of a worker link; the EngineCall of its attempt. It tells the sink what
 * arrives, keeps it while the sink is paused (never more than the credit that it gave), and gives credit back as bytes
 * reach the sink. Owned by its LinkClient, on the socket thread.
 */
import type { EngineCall, EngineFault } from '../client.js';
import type { RowSink } from './contract.js';
import type { LinkConnection } from './link-connection.js';
import type { AnswerHead } from './link-messages.js';
import { LINK_KIND, STEP_BYTES_MAX, STEP_ENTRY_BYTES } from './link-protocol.js';
import type { RowBatch } from './link-rows.js';

/** What a stream needs of its link. */
export interface LinkStreamOptions {
  readonly id: number;
  readonly sink: RowSink;
  readonly connection: LinkConnection;
  readonly rows: RowBatch;
  /** Credit that the answer begins with, bytes. */
  readonly answerWindowBytes: number;
  /** Whole request body; read until the stream has ended. */
  readonly body: Uint8Array;
  /** Called once: the sink has been told the end, or the caller aborted. `hasLeft`: the peer still owes its end. */
  readonly onOver: (stream: LinkStream, hasLeft: boolean) => void;
}

/** What arrived while the sink was paused. */
type Kept =
  | { readonly kind: 'head'; readonly head: AnswerHead }
  | { readonly kind: 'data'; readonly bytes: Uint8Array }
  | { readonly kind: 'rows'; readonly choice: number; readonly finish: number; readonly ids: Uint32Array }
  | { readonly kind: 'end'; readonly fault: EngineFault | null };

/** See the head of the file. */
export class LinkStream implements EngineCall {
  readonly id: number;
  readonly #options: LinkStreamOptions;
  /** Bytes that the peer may still send; bytes told to the sink and not given back yet. */
  #credit: number;
  #owed = 0;
  #bodyCredit = 0;
  #bodySent = 0;
  #isOver = false;
  #isPaused = false;
  #isDraining = false;
  #hasHead = false;
  #kept: Kept[] = [];

  constructor(options: LinkStreamOptions) {
    this.#options = options;
    this.id = options.id;
    this.#credit = options.answerWindowBytes;
  }

  /** The peer may send `more` bytes of body; sends as much of it as the credit allows. */
  sendBody(more: number): void {
    const { body, connection } = this.#options;
    this.#bodyCredit += more;
    while (this.#bodySent < body.length && this.#bodyCredit > 0) {
      const bytes = Math.min(body.length - this.#bodySent, this.#bodyCredit, STEP_BYTES_MAX);
      connection.send(LINK_KIND.body, this.id, [body.subarray(this.#bodySent, this.#bodySent + bytes)]);
      this.#bodySent += bytes;
      this.#bodyCredit -= bytes;
    }
  }

  abort(): void {
    if (this.#isOver) return;
    this.#options.connection.send(LINK_KIND.cancel, this.id);
    this.#leave({ kind: 'aborted', message: 'the call was ended on this side', cause: null }, true);
  }

  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    // As EngineClient: the caller may be inside the callback of another stream.
    queueMicrotask(() => this.#drain());
  }

  /** The engine's answer begins. False: it had begun. */
  takeHead(head: AnswerHead): boolean {
    if (this.#hasHead) return false;
    this.#hasHead = true;
    this.#take({ kind: 'head', head });
    return true;
  }

  /** Bytes of the answer; the memory is this side's. False: more than the peer had credit for, or no head before. */
  takeData(bytes: Uint8Array): boolean {
    if (!this.#spend(bytes.length)) return false;
    this.#take({ kind: 'data', bytes });
    return true;
  }

  /** Rows that lie in the shared RowBatch, of `bytes` on the wire. False as for takeData. */
  takeRows(bytes: number): boolean {
    if (!this.#spend(bytes)) return false;
    const { batch } = this.#options.rows;
    if (this.#mustKeep) this.#keepRows();
    else {
      this.#options.sink.onRows(batch);
      this.#giveBack(bytes);
    }
    return true;
  }

  /** The peer has ended the stream, or the link itself has ended. False: it ended well and had not begun. */
  takeEnd(fault: EngineFault | null): boolean {
    if (fault === null && !this.#hasHead) return false;
    this.#take({ kind: 'end', fault });
    return true;
  }

  /** Ends a call that was never started. */
  refuse(fault: EngineFault): void {
    this.#leave(fault, false);
  }

  get #mustKeep(): boolean {
    return this.#isPaused || this.#isDraining || this.#kept.length > 0;
  }

  #spend(bytes: number): boolean {
    this.#credit -= bytes;
    return this.#hasHead && this.#credit >= 0;
  }

  #take(item: Kept): void {
    if (this.#mustKeep) this.#kept.push(item);
    else this.#tell(item);
  }

  #keepRows(): void {
    const { rows } = this.#options;
    rows.each((choice, finish, ids) => this.#kept.push({ kind: 'rows', choice, finish, ids: ids.slice() }));
  }

  #drain(): void {
    if (this.#isDraining) return;
    this.#isDraining = true;
    const kept = this.#kept;
    let at = 0;
    while (at < kept.length && !this.#isPaused && !this.#isOver) this.#tell(kept[at++]!);
    kept.splice(0, at);
    this.#isDraining = false;
  }

  #tell(item: Kept): void {
    if (this.#isOver) return;
    const { sink, rows } = this.#options;
    if (item.kind === 'head') {
      const { status, contentType, headers } = item.head;
      sink.onHead(status, contentType, headers);
    } else if (item.kind === 'data') {
      sink.onData(item.bytes);
      this.#giveBack(item.bytes.length);
    } else if (item.kind === 'rows') {
      rows.clear(item.ids);
      rows.add(item.choice, item.finish, 0, item.ids.length);
      sink.onRows(rows.batch);
      this.#giveBack(STEP_ENTRY_BYTES + item.ids.length * 4);
    } else this.#leave(item.fault, false);
  }

  /** Credit goes back in halves of the window: a frame for each piece would cost as much as the piece. */
  #giveBack(bytes: number): void {
    if (this.#isOver) return;
    this.#owed += bytes;
    const { answerWindowBytes, connection } = this.#options;
    if (this.#owed * 2 < answerWindowBytes) return;
    connection.sendWord(LINK_KIND.credit, this.id, this.#owed);
    this.#credit += this.#owed;
    this.#owed = 0;
  }

  #leave(fault: EngineFault | null, hasLeft: boolean): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#kept = [];
    const { sink, onOver } = this.#options;
    onOver(this, hasLeft);
    if (fault === null) sink.onEnd();
    else sink.onError(fault);
  }
}
