/**
 * What the memory of a pool means (K0): the TypeScript face of native/transfer/layout.h, which draws the orders and makes
 * every check that depends on more than one field. Here a layout becomes the words that the addon takes. Pure.
 */
import { choice, options, text, wholeNumber } from './checks.js';
import { TRANSFER_LAYOUT, TRANSFER_LAYOUT_WORDS, TRANSFER_PLANE_WORDS } from './descriptor.js';
import { invalid } from './errors.js';

/** Shape of one rank's part of a KV cache. */
export interface KvShape {
  readonly layers: number;
  /** Tokens of a block. */
  readonly blockTokens: number;
  /** Heads of this rank. */
  readonly heads: number;
  /** Heads of the whole model. Default: heads × tpSize. */
  readonly headsTotal?: number;
  readonly headDim: number;
  /** Bytes of one number: 2 for bf16, 1 for fp8. */
  readonly elementBytes: number;
  /** Default 0. */
  readonly tpRank?: number;
  /** Default 1. */
  readonly tpSize?: number;
  /** 'nhd': [token][head][dim], the default; 'hnd': [head][token][dim]. */
  readonly innerOrder?: 'nhd' | 'hnd';
  /** K and V apart (the default), side by side in each block, or joined in one vector (MLA). */
  readonly kvSplit?: 'separate' | 'adjacent' | 'joined';
  /** Two pools with different models never exchange blocks. Default: the empty string. */
  readonly model?: string;
}

/** Blocks of a paged KV cache in one piece of memory. */
export interface PagedKvLayout extends KvShape {
  readonly kind: 'paged-kv';
  /** 'layer-major', the default: all blocks of layer 0, then of layer 1; 'block-major': all layers of block 0, then of block 1. */
  readonly blockOrder?: 'layer-major' | 'block-major';
}

/** The same where each plane (a layer's K or V) lies somewhere of its own in the pool. */
export interface TensorListLayout extends KvShape {
  readonly kind: 'tensor-list';
  /** Bytes from the pool's first byte to the plane's block 0, and from block to block. */
  readonly planes: readonly { readonly base: number; readonly blockStride: number }[];
}

/** Bytes without meaning: block b at b × stride. */
export interface OpaqueLayout {
  readonly kind: 'opaque';
  readonly blockBytes: number;
  /** Default: blockBytes. */
  readonly stride?: number;
}

/** The layout of a pool. */
export type Layout = PagedKvLayout | TensorListLayout | OpaqueLayout;

const KINDS = ['paged-kv', 'tensor-list', 'opaque'];
const BLOCK_ORDERS = ['layer-major', 'block-major'];
const INNER_ORDERS = ['nhd', 'hnd'];
const KV_SPLITS = ['separate', 'adjacent', 'joined'];
const SHAPE_KEYS = [
  'kind',
  'layers',
  'blockTokens',
  'heads',
  'headsTotal',
  'headDim',
  'elementBytes',
  'tpRank',
  'tpSize',
  'innerOrder',
  'kvSplit',
  'model',
];
const LIMIT = { layers: 1024, blockTokens: 65_536, heads: 4096, headDim: 8192, elementBytes: 16, tp: 4096 };
const MODEL_BYTES_MAX = 256;
const POOL_BYTES_MAX = 2 ** 46;

/** Most blocks of a pool. */
export const BLOCKS_MAX = 2 ** 28;

/** Writes a number below 2^53 as its low and its high word. */
export function putTwoWords(words: Uint32Array, at: number, value: number): void {
  words[at] = value >>> 0;
  words[at + 1] = Math.floor(value / 2 ** 32);
}

/** Reads a number below 2^53. */
export function twoWords(words: Uint32Array, at: number): number {
  return words[at]! + words[at + 1]! * 2 ** 32;
}

function putShape(words: Uint32Array, layout: PagedKvLayout | TensorListLayout): void {
  const put = (
    field: keyof typeof TRANSFER_LAYOUT & keyof KvShape,
    value: unknown,
    max: number,
    min = 1,
  ): void => {
    words[TRANSFER_LAYOUT[field]] = wholeNumber(`layout.${field}`, value, min, max);
  };
  put('layers', layout.layers, LIMIT.layers);
  put('blockTokens', layout.blockTokens, LIMIT.blockTokens);
  put('heads', layout.heads, LIMIT.heads);
  put('tpSize', layout.tpSize ?? 1, LIMIT.tp);
  put('tpRank', layout.tpRank ?? 0, LIMIT.tp - 1, 0);
  put('headsTotal', layout.headsTotal ?? layout.heads * (layout.tpSize ?? 1), LIMIT.heads);
  put('headDim', layout.headDim, LIMIT.headDim);
  put('elementBytes', layout.elementBytes, LIMIT.elementBytes);
  words[TRANSFER_LAYOUT.innerOrder] = choice('layout.innerOrder', layout.innerOrder ?? 'nhd', INNER_ORDERS);
  words[TRANSFER_LAYOUT.kvSplit] = choice('layout.kvSplit', layout.kvSplit ?? 'separate', KV_SPLITS);
}

/** The words of a layout of `blocks` blocks. Throws INVALID that names the field. */
export function layoutWords(layout: Layout, blocks: number): Uint32Array {
  if (typeof layout !== 'object' || layout === null) invalid('layout', layout, 'an object');
  const kind = choice('layout.kind', layout.kind, KINDS);
  const planes = layout.kind === 'tensor-list' ? layout.planes : [];
  if (!Array.isArray(planes) || planes.length > 2 * LIMIT.layers)
    invalid('layout.planes', planes, `an array of at most ${2 * LIMIT.layers}`);
  const words = new Uint32Array(TRANSFER_LAYOUT_WORDS + planes.length * TRANSFER_PLANE_WORDS);
  words[TRANSFER_LAYOUT.kind] = kind;
  words[TRANSFER_LAYOUT.blocks] = wholeNumber('blocks', blocks, 1, BLOCKS_MAX);
  words[TRANSFER_LAYOUT.planes] = planes.length;
  if (layout.kind === 'opaque') {
    options('layout', layout, ['kind', 'blockBytes', 'stride']);
    const blockBytes = wholeNumber('layout.blockBytes', layout.blockBytes, 1, POOL_BYTES_MAX);
    putTwoWords(words, TRANSFER_LAYOUT.blockBytes, blockBytes);
    const stride = wholeNumber('layout.stride', layout.stride ?? blockBytes, blockBytes, POOL_BYTES_MAX);
    putTwoWords(words, TRANSFER_LAYOUT.stride, stride);
    return words;
  }
  options('layout', layout, [...SHAPE_KEYS, layout.kind === 'paged-kv' ? 'blockOrder' : 'planes']);
  putShape(words, layout);
  if (layout.kind === 'paged-kv')
    words[TRANSFER_LAYOUT.blockOrder] = choice(
      'layout.blockOrder',
      layout.blockOrder ?? 'layer-major',
      BLOCK_ORDERS,
    );
  planes.forEach(({ base, blockStride }, i) => {
    const at = TRANSFER_LAYOUT_WORDS + i * TRANSFER_PLANE_WORDS;
    putTwoWords(words, at, wholeNumber(`layout.planes[${i}].base`, base, 0, POOL_BYTES_MAX));
    putTwoWords(
      words,
      at + 2,
      wholeNumber(`layout.planes[${i}].blockStride`, blockStride, 1, POOL_BYTES_MAX),
    );
  });
  return words;
}

/** The model that a layout names. */
export function modelOf(layout: Layout): string {
  return layout.kind === 'opaque' ? '' : text('layout.model', layout.model ?? '', MODEL_BYTES_MAX);
}

/** Bytes that `blocks` blocks of a layout take in one piece of memory; undefined for planes placed by hand. */
export function layoutBytes(layout: Layout, blocks: number): number | undefined {
  if (layout.kind === 'tensor-list') return undefined;
  if (layout.kind === 'opaque') return (layout.stride ?? layout.blockBytes) * blocks;
  const parts = layout.kvSplit === 'joined' ? 1 : 2;
  const tokenBytes = layout.heads * layout.headDim * layout.elementBytes;
  return blocks * layout.layers * parts * layout.blockTokens * tokenBytes;
}

/** Size of a pool. Throws INVALID. */
export function poolBytes(value: unknown): number {
  return wholeNumber('bytes', value, 1, POOL_BYTES_MAX);
}
