/**
 * Log-probabilities of the mock engine: made up, but a function of the token alone, so that an answer has the same ones
 * whichever way it reaches the client. In vLLM's order: the drawn token first, then the likeliest ones without it; one
 * token in four is drawn although it is not among them. Pure; one per engine.
 */
import type { Api } from '../../messages/token-request.js';
import type { Tokenizer } from '../../preprocess/tokenizers/tokenizer.js';
import type { AnswerVocabulary } from '../answer-vocabulary.js';
import { mix32 } from '../token-source.js';

/** What a request wants of them. */
export interface LogprobsRequest {
  /** Alternatives per token, 0 to 20. */
  readonly top: number;
  /** Tokens are named `token_id:7` in the place of their text. */
  readonly asIds: boolean;
}

/** A token and its log-probability. */
export interface Likely {
  readonly id: number;
  readonly logprob: number;
}

/** See the head of the file. */
export class TokenLogprobs {
  readonly #vocabulary: AnswerVocabulary;
  readonly #tokenizer: Tokenizer;

  constructor(vocabulary: AnswerVocabulary, tokenizer: Tokenizer) {
    this.#vocabulary = vocabulary;
    this.#tokenizer = tokenizer;
  }

  /** JSON of `logprobs` for some tokens of a choice; `offset`: characters of the choice before them. */
  json(api: Api, ids: readonly number[], offset: number, wanted: LogprobsRequest): string {
    const positions = ids.map(id => this.likely(id, wanted.top));
    if (api === 'chat') {
      const content = positions.map(likely => ({
        ...this.#chatEntry(likely[0]!, wanted),
        top_logprobs: likely.slice(0, wanted.top).map(one => this.#chatEntry(one, wanted)),
      }));
      return JSON.stringify({ content });
    }
    let at = offset;
    return JSON.stringify({
      text_offset: ids.map(id => {
        const start = at;
        at += this.lengthOf(id);
        return start;
      }),
      token_logprobs: positions.map(likely => likely[0]!.logprob),
      tokens: positions.map(likely => this.#name(likely[0]!.id, wanted)),
      top_logprobs: positions.map(likely =>
        Object.fromEntries(likely.map(one => [this.#name(one.id, wanted), one.logprob])),
      ),
    });
  }

  /** Characters of a token, as Python counts them. */
  lengthOf(id: number): number {
    return [...this.#textOf(id)].length;
  }

  /** The drawn token first, then the likeliest without it: `top` of them, or one more than that. */
  likely(drawn: number, top: number): Likely[] {
    const random = mix32(drawn);
    const isOutranked = (random & 3) === 0;
    const share = (random >>> 2) % 64;
    const likely = [{ id: drawn, logprob: isOutranked ? -8 - share / 64 : -share / 64 }];
    const { ids } = this.#vocabulary;
    const wanted = isOutranked ? top + 1 : Math.max(1, top);
    for (let rank = 0; likely.length < wanted; rank++) {
      const id = ids[mix32(drawn + rank * 0x9e3779b1) % ids.length]!;
      if (!likely.some(known => known.id === id)) likely.push({ id, logprob: -1 - likely.length / 8 });
    }
    return likely;
  }

  #chatEntry({ id, logprob }: Likely, wanted: LogprobsRequest): object {
    return { token: this.#name(id, wanted), logprob, bytes: [...Buffer.from(this.#textOf(id))] };
  }

  #name(id: number, wanted: LogprobsRequest): string {
    return wanted.asIds ? `token_id:${id}` : this.#textOf(id);
  }

  /** With the text of special tokens, which the answer itself leaves out. */
  #textOf(id: number): string {
    return this.#vocabulary.textOf(id) || Buffer.from(this.#tokenizer.bytesOf(id) ?? []).toString('utf8');
  }
}
