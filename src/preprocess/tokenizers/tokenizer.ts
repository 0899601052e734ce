/** Tokenizer (R3): text to ids and the facts that the detokenizer (R6) needs. Built once per thread, then read only. */

/** One tokenizer with its vocabulary. Immutable after loading; each pool or socket thread loads its own. */
export interface Tokenizer {
  readonly name: string;
  /** One more than the highest id. */
  readonly vocabularySize: number;
  /** Ids that end an answer (not shown). */
  readonly eosIds: Uint32Array;
  /** Ids of plain text. Text that looks like a special token stays plain text. */
  encode(text: string): Uint32Array;
  /** Id of a special token by its text, or undefined. */
  specialId(text: string): number | undefined;
  isSpecial(id: number): boolean;
  /** UTF-8 bytes of one id (of its text, for a special token), or undefined for an id that does not exist. */
  bytesOf(id: number): Uint8Array | undefined;
}
