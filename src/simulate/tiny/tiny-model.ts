/**
 * A real decoder-only transformer, very small, with random weights, whose keys and values live in pages that are found
 * through the sequence's block table and nowhere else. So a block that is wrong, stale, late or torn changes the tokens.
 * Each position is computed alone, in order, by the same arithmetic (doubles; pages hold floats), so batches, chunks,
 * preemption and cache hits change nothing. One per mock engine, on its thread; the text depends on seed and tokens.
 */
import assert from 'node:assert';
import { mix32, type TokenInput, type TokenModel, type TokenSourceOptions } from '../token-source.js';
import { type KvPages, TINY_ROW, TINY_SHAPE } from './kv-pages.js';
import { TINY_INNER, TINY_WIDTH, type TinyLayer, tinyWeights } from './tiny-weights.js';

const { layers: LAYERS, heads: HEADS, headDim: HEAD_DIM } = TINY_SHAPE;
const SCORE_SCALE = 1 / Math.sqrt(HEAD_DIM);
const POSITION_SALT = 0x9e3779b9;

type Eight = [number, number, number, number, number, number, number, number];

/** See the head of the file. */
export class TinyModel implements TokenModel {
  readonly eosId: number;
  readonly #pages: KvPages;
  readonly #ids: Uint32Array;
  readonly #eosBelow: number;
  readonly #seed: number;
  readonly #layers: readonly TinyLayer[];
  /** The residual stream of the position that was computed last. */
  readonly #stream = new Float64Array(TINY_WIDTH);
  readonly #streamBits = new Int32Array(this.#stream.buffer);
  readonly #normed = new Float64Array(TINY_WIDTH);
  readonly #query = new Float64Array(TINY_ROW);
  readonly #row = new Float64Array(TINY_ROW);
  readonly #mixed = new Float64Array(TINY_ROW);
  readonly #inner = new Float64Array(TINY_INNER);

  constructor(options: TokenSourceOptions, pages: KvPages) {
    this.eosId = options.eosId;
    this.#pages = pages;
    this.#ids = options.ids;
    this.#eosBelow = options.eosRate * 4294967296;
    this.#seed = mix32(options.seed + POSITION_SALT);
    this.#layers = tinyWeights(options.seed);
  }

  compute(input: TokenInput, from: number, to: number): void {
    assert(to <= input.blocks.length * this.#pages.blockSize);
    for (let position = from; position < to; position++) this.#position(input, position);
  }

  /**
   * The head: all bits of the last position's stream, hashed. A likeliest token among many would hide most small
   * errors; this one shows a change of the last bit of any number in any page.
   */
  next(_input: TokenInput, choice: number, masked: ReadonlySet<number> | null): number {
    let first = this.#seed;
    let second = ~this.#seed;
    for (const word of this.#streamBits) {
      first = Math.imul(first ^ word, 0x9e3779b1);
      first ^= first >>> 15;
      second = Math.imul(second ^ word ^ first, 0x85ebca6b);
      second ^= second >>> 13;
    }
    if (mix32(first + choice) < this.#eosBelow && masked?.has(this.eosId) !== true) return this.eosId;
    const ids = this.#ids;
    let at = (mix32(second) + choice) % ids.length;
    // Bounded, because a mask could hold every id.
    for (let tries = 0; tries < ids.length && masked?.has(ids[at]!) === true; tries++)
      at = (at + 1) % ids.length;
    return ids[at]!;
  }

  /** Computes one position: its K and V go to its slot, the stream stays in `#stream`. */
  #position(input: TokenInput, position: number): void {
    this.#embed(input.tokenAt(position), position);
    for (let layer = 0; layer < LAYERS; layer++) {
      const weights = this.#layers[layer]!;
      this.#norm();
      multiply(weights.query, this.#normed, this.#query);
      this.#store(input.blocks, position, layer, 0, weights.key);
      this.#store(input.blocks, position, layer, 1, weights.value);
      for (let head = 0; head < HEADS; head++) this.#attend(input.blocks, position, layer, head);
      addProduct(weights.output, this.#mixed, this.#stream);
      this.#norm();
      multiply(weights.up, this.#normed, this.#inner);
      for (let at = 0; at < TINY_INNER; at++) if (this.#inner[at]! < 0) this.#inner[at] = 0;
      addProduct(weights.down, this.#inner, this.#stream);
    }
  }

  /** Vectors of an id and of a position, from −1 to 1 each, made by hashing them. */
  #embed(id: number, position: number): void {
    const token = mix32(id ^ this.#seed);
    const place = mix32(position + POSITION_SALT);
    for (let at = 0; at < TINY_WIDTH; at++) {
      const step = Math.imul(at + 1, 0x85ebca6b);
      this.#stream[at] = (mix32(token + step) + 0.5 * mix32(place ^ step)) / 2147483648 - 1.5;
    }
  }

  /** Root-mean-square norm of the stream. */
  #norm(): void {
    const stream = this.#stream;
    let sum = 0;
    for (let at = 0; at < TINY_WIDTH; at++) sum += stream[at]! * stream[at]!;
    const scale = 1 / Math.sqrt(sum / TINY_WIDTH + 1e-9);
    for (let at = 0; at < TINY_WIDTH; at++) this.#normed[at] = stream[at]! * scale;
  }

  /** Index of the first float of K (`part` 0) or V (1) of a layer of a block. */
  #index(block: number, layer: number, part: number): number {
    return ((block * LAYERS + layer) * 2 + part) * this.#pages.blockSize * TINY_ROW;
  }

  #store(blocks: readonly number[], at: number, layer: number, part: number, weights: Float64Array): void {
    const { blockSize, slotStride, headStride, floats } = this.#pages;
    const row = this.#row;
    multiply(weights, this.#normed, row);
    const start =
      this.#index(blocks[Math.floor(at / blockSize)]!, layer, part) + (at % blockSize) * slotStride;
    for (let head = 0, from = 0; head < HEADS; head++)
      for (let dim = 0; dim < HEAD_DIM; dim++) floats[start + head * headStride + dim] = row[from++]!;
  }

  /**
   * Softmax over all positions up to this one, page by page, into the head's part of `#mixed`. Needs no maximum:
   * normed inputs keep the scores small, and where a broken page makes them large, infinity is as good as any answer.
   */
  #attend(blocks: readonly number[], position: number, layer: number, head: number): void {
    const { blockSize, slotStride, headStride, floats } = this.#pages;
    const first = head * HEAD_DIM;
    const valueOffset = blockSize * TINY_ROW;
    // Written out for eight numbers per head: in registers this is twice as fast as in loops over arrays.
    const [q0, q1, q2, q3, q4, q5, q6, q7] = this.#query.subarray(
      first,
      first + HEAD_DIM,
    ) as unknown as Eight;
    let [sum, m0, m1, m2, m3, m4, m5, m6, m7] = [0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (let at = 0, left = position + 1; left > 0; at++, left -= blockSize) {
      const start = this.#index(blocks[at]!, layer, 0) + head * headStride;
      const end = start + Math.min(left, blockSize) * slotStride;
      for (let k = start, v = start + valueOffset; k < end; k += slotStride, v += slotStride) {
        const score =
          q0 * floats[k]! +
          q1 * floats[k + 1]! +
          q2 * floats[k + 2]! +
          q3 * floats[k + 3]! +
          q4 * floats[k + 4]! +
          q5 * floats[k + 5]! +
          q6 * floats[k + 6]! +
          q7 * floats[k + 7]!;
        const weight = Math.exp(score * SCORE_SCALE);
        sum += weight;
        m0 += weight * floats[v]!;
        m1 += weight * floats[v + 1]!;
        m2 += weight * floats[v + 2]!;
        m3 += weight * floats[v + 3]!;
        m4 += weight * floats[v + 4]!;
        m5 += weight * floats[v + 5]!;
        m6 += weight * floats[v + 6]!;
        m7 += weight * floats[v + 7]!;
      }
    }
    const mixed = [m0, m1, m2, m3, m4, m5, m6, m7];
    for (let dim = 0; dim < HEAD_DIM; dim++) this.#mixed[first + dim] = mixed[dim]! / sum;
  }
}

/** `output` = `matrix` × `input`. */
function multiply(matrix: Float64Array, input: Float64Array, output: Float64Array): void {
  for (let row = 0, at = 0; row < output.length; row++) {
    let sum = 0;
    for (let column = 0; column < input.length; column++) sum += matrix[at++]! * input[column]!;
    output[row] = sum;
  }
}

/** `output` += `matrix` × `input`. */
function addProduct(matrix: Float64Array, input: Float64Array, output: Float64Array): void {
  for (let row = 0, at = 0; row < output.length; row++) {
    let sum = 0;
    for (let column = 0; column < input.length; column++) sum += matrix[at++]! * input[column]!;
    output[row]! += sum;
  }
}
