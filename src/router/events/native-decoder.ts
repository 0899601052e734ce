/**
 * The event decoder over the addon (R4, ingest thread): msgpack batches of vLLM and SGLang into the tables of
 * event-tables.ts, in C++ (native/core/event_decode.h has the rules). The tables are shared memory because the addon
 * keeps their addresses: about 9 MiB that the system commits as they are used.
 */
import type { Addon } from '../../runtime/addon.js';
import { allocateShared } from '../../runtime/shared-memory.js';
import { ENGINE_HASH_WORDS } from '../index/contract.js';
import {
  EVENT_BLOCKS_MAX,
  EVENT_MEDIA_MAX,
  EVENT_MEDIA_WORDS,
  EVENT_ROW_WORDS,
  EVENT_ROWS_MAX,
  EVENT_TOKENS_MAX,
  type EventDecoder,
  type EventTables,
} from './event-tables.js';

/** Makes a decoder for the calling thread, which keeps it: it holds one of the addon's handles. */
export function createNativeDecoder(addon: Addon): EventDecoder {
  return new NativeDecoder(addon);
}

const signed = (words: number): Int32Array =>
  new Int32Array(allocateShared(words * 4, 'event rows'), 0, words);
const unsigned = (words: number): Uint32Array =>
  new Uint32Array(allocateShared(words * 4, 'event tables'), 0, words);

class NativeDecoder implements EventDecoder {
  readonly tables: EventTables = {
    rows: signed(EVENT_ROWS_MAX * EVENT_ROW_WORDS),
    parents: unsigned(EVENT_ROWS_MAX * ENGINE_HASH_WORDS),
    hashes: unsigned(EVENT_BLOCKS_MAX * ENGINE_HASH_WORDS),
    tokens: unsigned(EVENT_TOKENS_MAX),
    media: unsigned(EVENT_MEDIA_MAX * EVENT_MEDIA_WORDS),
  };
  readonly #addon: Addon;
  readonly #handle: number;

  constructor(addon: Addon) {
    const { rows, parents, hashes, tokens, media } = this.tables;
    this.#addon = addon;
    this.#handle = addon.attachEventTables(rows, parents, hashes, tokens, media);
  }

  decode(payload: Uint8Array): number {
    return this.#addon.decodeEvents(this.#handle, payload);
  }
}
