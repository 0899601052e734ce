/** Weights of the tiny model: fixed random numbers, the same for the same seed. Made once, read only. */
import { seededRandom } from '../../runtime/random.js';
import { TINY_ROW, TINY_SHAPE } from './kv-pages.js';

/** Numbers that stand for a token between two layers. */
export const TINY_WIDTH = 32;

/** Numbers inside of the feed-forward part of a layer. */
export const TINY_INNER = 64;

/** Matrices of one layer, one row of inputs per output. */
export interface TinyLayer {
  readonly query: Float64Array;
  readonly key: Float64Array;
  readonly value: Float64Array;
  readonly output: Float64Array;
  readonly up: Float64Array;
  readonly down: Float64Array;
}

/** All layers, first one first. */
export function tinyWeights(seed: number): readonly TinyLayer[] {
  const random = seededRandom(seed ^ 0x74696e79);
  // Uniform numbers of variance 1 ÷ inputs keep the size of what goes through.
  const matrix = (outputs: number, inputs: number): Float64Array => {
    const spread = Math.sqrt(12 / inputs);
    return Float64Array.from({ length: outputs * inputs }, () => (random() - 0.5) * spread);
  };
  return Array.from({ length: TINY_SHAPE.layers }, () => ({
    query: matrix(TINY_ROW, TINY_WIDTH),
    key: matrix(TINY_ROW, TINY_WIDTH),
    value: matrix(TINY_ROW, TINY_WIDTH),
    output: matrix(TINY_WIDTH, TINY_ROW),
    up: matrix(TINY_INNER, TINY_WIDTH),
    down: matrix(TINY_WIDTH, TINY_INNER),
  }));
}
