/**
 * A decoder for engines whose streams are events of their own (R5, socket thread): each frame is read and written anew as the
 * frame that an OpenAI server with token ids would have sent, and that is scanned into the batch. So all that reads batches
 * has one form. What a frame means is the translator's; it belongs to one answer and may keep what it has seen of it.
 */
import { strict as assert } from 'node:assert';
import type { EngineStream, FrameBatch, StreamFault } from './contract.js';
import { rowStart } from './event-rows.js';
import { FRAME, FRAME_FLAG, SCAN_HEADER } from './frame-descriptor.js';
import { openSseStream, type StreamLimits, type StreamScanner } from './stream-decoder.js';

/** What the frames of one answer mean. */
export interface FrameTranslator {
  /**
   * The frames in OpenAI's form, each with its `data: ` and blank line, for one frame of the engine; `bytes` are valid during
   * the call. Null: it is not what the engine promised, and ends the stream as malformed.
   */
  frame(bytes: Uint8Array): string | null;
  /** What goes before the end marker, in the same form; '' for nothing. */
  last(): string;
}

/** Opens a decoder; the rules of `openSseStream` hold. */
export function openTranslatedStream(
  scanner: StreamScanner,
  limits: StreamLimits,
  translator: FrameTranslator,
): EngineStream {
  return new TranslatedStream(scanner, limits, translator);
}

class TranslatedStream implements EngineStream {
  readonly #scanner: StreamScanner;
  readonly #source: EngineStream;
  readonly #translator: FrameTranslator;
  #fault: StreamFault | null = null;

  constructor(scanner: StreamScanner, limits: StreamLimits, translator: FrameTranslator) {
    this.#scanner = scanner;
    this.#translator = translator;
    this.#source = openSseStream(scanner, limits);
  }

  push(bytes: Uint8Array, onBatch: (batch: FrameBatch) => void): StreamFault | null {
    assert(this.#fault === null, 'nothing is pushed after a fault');
    let broken = false;
    const fault = this.#source.push(bytes, batch => {
      if (!broken) broken = !this.#translate(batch, onBatch);
    });
    this.#fault = broken ? 'malformed' : fault;
    return this.#fault;
  }

  end(): StreamFault | null {
    return this.#source.end();
  }

  /** False: a frame is not what the engine promised; those before it were handed on. */
  #translate(batch: FrameBatch, onBatch: (batch: FrameBatch) => void): boolean {
    const frames: string[] = [];
    let whole = true;
    for (let row = 0; row < batch.count && whole; row++) {
      const frame = this.#frame(batch, row);
      if (frame === null) whole = false;
      else frames.push(frame);
    }
    // The scan writes over the rows of `batch`, which are not needed any more: its source reads none after this call.
    if (frames.length > 0) this.#deliver(Buffer.from(frames.join('')), onBatch);
    return whole;
  }

  #deliver(bytes: Uint8Array, onBatch: (batch: FrameBatch) => void): void {
    const { table, ids } = this.#scanner;
    for (let from = 0; from < bytes.byteLength; ) {
      this.#scanner.scan(bytes, from, bytes.byteLength);
      from += table[SCAN_HEADER.consumed]!;
      const count = table[SCAN_HEADER.frames]!;
      if (count > 0) onBatch({ bytes, count, table, ids });
    }
  }

  #frame(batch: FrameBatch, row: number): string | null {
    const at = rowStart(row);
    const flags = batch.table[at + FRAME.flags]!;
    if ((flags & FRAME_FLAG.comment) !== 0) return ':\n\n';
    if ((flags & FRAME_FLAG.done) !== 0) return `${this.#translator.last()}data: [DONE]\n\n`;
    const [start, end] = [batch.table[at + FRAME.start]!, batch.table[at + FRAME.end]!];
    return this.#translator.frame(batch.bytes.subarray(start, end));
  }
}
