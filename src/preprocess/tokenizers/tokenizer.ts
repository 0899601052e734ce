/** Tokenizer (R3): text to ids and the facts that the detokenizer (R6) needs. Built once per thread, then read only. */

/**
 * What a decoder takes away where a text begins: nothing, one blank, or every blank that begins the first token. It
 * concerns an answer only when nothing visible is before it: else the text is one with that of its prompt.
 */
export type LeadingBlanks = 'kept' | 'dropOne' | 'dropAll';

/** What each id of a model stands for. */
export interface TokenTable {
  readonly name: string;
  /** One more than the highest id. */
  readonly vocabularySize: number;
  readonly leadingBlanks: LeadingBlanks;
  /** Tokens that `skip_special_tokens` leaves out. */
  isSpecial(id: number): boolean;
  /** UTF-8 bytes of one id (of its text, for a special token), or undefined for an id that does not exist. */
  bytesOf(id: number): Uint8Array | undefined;
}

/** A tokenizer that is part of Millrace, with its own table. */
export interface Tokenizer extends TokenTable {
  /** Ids that end an answer (not shown). */
  readonly eosIds: Uint32Array;
  /** Ids of plain text. Text that looks like a special token stays plain text. */
  encode(text: string): Uint32Array;
  /** Id of a special token by its text, or undefined. */
  specialId(text: string): number | undefined;
}
