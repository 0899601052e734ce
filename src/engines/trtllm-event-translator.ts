/**
 * What the KV cache events of one TensorRT-LLM server mean for the prefix index (R4): stores of full blocks, removals, and
 * a clear where the server made its pools. Left out is what the index does not keep: attention windows other than the
 * largest, blocks that are not full, blocks with media, and what is chained behind either. Moves between GPU and host
 * memory change nothing: a block is reused from both, and its removal says that it is in neither. For the thread that polls.
 */
import type { EventWriter } from '../router/events/contract.js';
import type { TrtllmBlock, TrtllmChange, TrtllmEvent } from './trtllm-events.js';

/** One life of one server. */
export class TrtllmEventTranslator {
  #blockSize: number | null;
  /** The largest window so far: that of full attention, where there is any. */
  #window = 0;
  #hasBlocks = false;

  /** `blockSize`: tokens per block; null: the first store of several blocks says it. */
  constructor(blockSize: number | null) {
    this.#blockSize = blockSize;
  }

  /** Writes what follows from an event. */
  write({ change, windowSize }: TrtllmEvent, writer: EventWriter): void {
    if (windowSize !== null && windowSize < this.#window) return;
    if (windowSize !== null && windowSize > this.#window) {
      this.#window = windowSize;
      this.#clear(writer);
    }
    if (change.type === 'created') this.#clear(writer);
    else if (change.type === 'stored') this.#store(change, writer);
    else if (change.type === 'removed') writer.remove(change.hashes);
  }

  #clear(writer: EventWriter): void {
    if (this.#hasBlocks) writer.clear();
    this.#hasBlocks = false;
  }

  #store({ parent, blocks }: TrtllmChange & { readonly type: 'stored' }, writer: EventWriter): void {
    const [first, second] = blocks;
    if (first === undefined) return;
    // Behind the first block there is only what came after a full one.
    if (this.#blockSize === null && second !== undefined) this.#blockSize = first.tokens.length;
    if (this.#blockSize === null || this.#blockSize === 0) return;
    const blockSize = this.#blockSize;
    const full = fullBlocks(blocks, blockSize);
    if (full.length === 0) return;
    this.#hasBlocks = true;
    const { adapter, adapterId, salt } = first;
    writer.store({ parent, blocks: full, blockSize, adapter, adapterId, salt });
  }
}

/**
 * The blocks of a store that can be found again by their tokens: full ones without media. Another one ends the chain:
 * what stands behind it cannot be reached.
 */
export function fullBlocks(blocks: readonly TrtllmBlock[], blockSize: number): readonly TrtllmBlock[] {
  const end = blocks.findIndex(block => block.tokens.length !== blockSize || !block.isPlain);
  return end === -1 ? blocks : blocks.slice(0, end);
}
