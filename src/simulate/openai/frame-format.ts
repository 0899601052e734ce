/**
 * Bytes of vLLM's answers: SSE frames and whole bodies of both routes. What never changes in a stream is written once;
 * a frame is a handful of string concatenations around text that is escaped already. Pure.
 *
 *     data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" a",
 *       "logprobs":null,"finish_reason":null,"stop_reason":null,"token_ids":[7]}]}\n\n
 */
import type { Api } from '../../messages/token-request.js';

/** What frames of one answer have in common. */
export interface AnswerIdentity {
  readonly api: Api;
  readonly id: string;
  /** Seconds since the Unix epoch. */
  readonly created: number;
  readonly model: string;
}

/** Counts of an answer or, under continuous usage, of one choice so far. */
export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly cachedTokens: number;
}

/** Why a choice ended. `stopReason` is a stop string, a stop id or null. */
export interface Ending {
  readonly finish: 'stop' | 'length' | 'abort';
  readonly stopReason: string | number | null;
}

/** One finished choice of an answer that is sent whole. */
export interface WholeChoice extends Ending {
  readonly index: number;
  readonly text: string;
  /** The value of `logprobs` as JSON. */
  readonly logprobs: string;
  readonly tokenIds: readonly number[] | null;
  readonly promptTokenIds: Uint32Array | null;
}

/** Members that an engine adds to a whole answer, each with the comma before it: to the answer, to its first choice. */
export interface AnswerExtras {
  readonly top?: string;
  readonly choice?: string;
}

/** End of every stream. */
export const DONE_FRAME = 'data: [DONE]\n\n';

/** The `usage` object as JSON. */
export function usageJson(usage: Usage): string {
  const { promptTokens, completionTokens, cachedTokens } = usage;
  const total = promptTokens + completionTokens;
  return `{"prompt_tokens":${promptTokens},"total_tokens":${total},"completion_tokens":${completionTokens},"prompt_tokens_details":{"cached_tokens":${cachedTokens}}}`;
}

const OBJECTS = {
  chat: { chunk: 'chat.completion.chunk', whole: 'chat.completion' },
  completions: { chunk: 'text_completion', whole: 'text_completion' },
} as const;

/** Writer of one answer. */
export class FrameFormat {
  readonly #chat: boolean;
  readonly #head: string;
  readonly #identity: AnswerIdentity;

  constructor(identity: AnswerIdentity) {
    this.#identity = identity;
    this.#chat = identity.api === 'chat';
    this.#head = `data: ${this.#open(OBJECTS[identity.api].chunk)},"choices":[`;
  }

  #open(object: string): string {
    const { id, created, model } = this.#identity;
    return `{"id":${JSON.stringify(id)},"object":"${object}","created":${created},"model":${JSON.stringify(model)}`;
  }

  /** Start of each frame of a choice, to be kept and given to `delta`. */
  choiceHead(index: number): string {
    return `${this.#head}{"index":${index},${this.#chat ? '"delta":{"content":"' : '"text":"'}`;
  }

  /**
   * A frame with new text (`escaped`: the inside of a JSON string). `ids` become `token_ids`, `prompt` is the inside
   * of `prompt_token_ids` (completions only); null leaves the field out. `logprobs` is JSON. `usage` is what follows the choices.
   */
  delta(
    choiceHead: string,
    escaped: string,
    logprobs: string,
    ending: Ending | null,
    ids: readonly number[] | null,
    prompt: string | null,
    usage: string,
  ): string {
    let frame = choiceHead + escaped;
    frame += this.#chat ? '"},"logprobs":' : '","logprobs":';
    frame += `${logprobs},"finish_reason":`;
    if (ending !== null) frame += `"${ending.finish}","stop_reason":${JSON.stringify(ending.stopReason)}`;
    else frame += this.#chat ? 'null' : 'null,"stop_reason":null';
    if (prompt !== null) frame += `,"prompt_token_ids":[${prompt}]`;
    if (ids !== null) frame += `,"token_ids":[${ids.join(',')}]`;
    return `${frame}}]${usage}}\n\n`;
  }

  /** The chat frame that opens a choice. `tail` follows the choices: prompt ids and usage. */
  role(index: number, tail: string): string {
    const delta = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null';
    return `${this.#head}{"index":${index},${delta}}]${tail}}\n\n`;
  }

  /** The frame without choices that closes a stream with usage. */
  usage(usage: Usage): string {
    return `${this.#head}],"usage":${usageJson(usage)}}\n\n`;
  }

  /** A whole answer. */
  whole(choices: readonly WholeChoice[], usage: Usage, extras: AnswerExtras = {}): string {
    const { api } = this.#identity;
    const list = choices.map((choice, at) =>
      this.#wholeChoice(choice, at === 0 ? (extras.choice ?? '') : ''),
    );
    const first = choices[0]?.promptTokenIds ?? null;
    const prompt = this.#chat && first !== null ? `,"prompt_token_ids":[${first.join(',')}]` : '';
    return `${this.#open(OBJECTS[api].whole)},"choices":[${list.join(',')}],"usage":${usageJson(usage)}${prompt}${extras.top ?? ''}}`;
  }

  #wholeChoice(choice: WholeChoice, extra: string): string {
    const text = JSON.stringify(choice.text);
    let json = `{"index":${choice.index},`;
    json += this.#chat ? `"message":{"role":"assistant","content":${text}}` : `"text":${text}`;
    json += `,"logprobs":${choice.logprobs},"finish_reason":"${choice.finish}","stop_reason":${JSON.stringify(choice.stopReason)}`;
    if (choice.promptTokenIds !== null && !this.#chat)
      json += `,"prompt_token_ids":[${choice.promptTokenIds.join(',')}]`;
    if (choice.tokenIds !== null) json += `,"token_ids":[${choice.tokenIds.join(',')}]`;
    return `${json}${extra}}`;
  }
}

/** One choice at a moment of its answer, for a form that is not OpenAI's. */
export interface ChoiceState {
  readonly index: number;
  readonly promptIds: Uint32Array;
  readonly cachedTokens: number;
  /** All of the answer so far, and what is new in it. */
  readonly text: string;
  readonly freshText: string;
  readonly ids: readonly number[];
  readonly freshIds: readonly number[];
  readonly ending: Ending | null;
}

/** Answers in a form of the engine's own. */
export interface NativeForm {
  frame(state: ChoiceState): string;
  whole(states: readonly ChoiceState[]): string;
}
