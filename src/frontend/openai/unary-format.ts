/**
 * OpenAI unary bodies (R7) of the token mode: the engine streams, this folds its choices into one `chat.completion` or
 * `text_completion` object. One format per request, owned by the socket thread.
 */
import assert from 'node:assert';
import type { FinishReason, TokenLogprobs, Usage } from '../../messages/delta.js';
import type { Api } from '../../messages/token-request.js';
import { quoteJson } from './json-text.js';
import { logprobsJson } from './logprobs-json.js';
import { usageJson } from './usage-json.js';

/** What is known of a response before its first token. */
export interface UnaryFormatOptions {
  readonly api: Api;
  readonly id: string;
  /** Unix seconds. */
  readonly created: number;
  readonly model: string;
  /** Number of choices, 1 or more. */
  readonly choices: number;
  /** The client wants log-probabilities: they are never null then. */
  readonly logprobs: boolean;
}

/** Collects the choices of one response. */
export interface UnaryFormat {
  /** A piece of text, with the log-probabilities of its tokens where they are wanted. */
  text(choice: number, text: string, logprobs?: readonly TokenLogprobs[]): void;
  finish(choice: number, reason: FinishReason, stopReason?: string | number | null): void;
  /** The JSON body; every choice must have finished. */
  body(usage: Usage): string;
}

interface Choice {
  text: string;
  logprobs: TokenLogprobs[] | null;
  reason: FinishReason | null;
  stopReason: string | number | null | undefined;
}

/** Creates the format of one request. */
export function createUnaryFormat(options: UnaryFormatOptions): UnaryFormat {
  const chat = options.api === 'chat';
  const choices = Array.from(
    { length: options.choices },
    (): Choice => ({ text: '', logprobs: options.logprobs ? [] : null, reason: null, stopReason: undefined }),
  );
  const choiceJson = (choice: Choice, index: number): string => {
    assert(choice.reason !== null, `choice ${index} has not finished`);
    const text = quoteJson(choice.text);
    const content = chat
      ? `"message":{"role":"assistant","content":${text},"refusal":null}`
      : `"text":${text}`;
    const stopped =
      choice.stopReason === undefined ? '' : `,"stop_reason":${JSON.stringify(choice.stopReason)}`;
    const logprobs = choice.logprobs === null ? 'null' : logprobsJson(options.api, choice.logprobs);
    return `{"index":${index},${content},"logprobs":${logprobs},"finish_reason":"${choice.reason}"${stopped}}`;
  };
  return {
    text(choice, text, logprobs) {
      choices[choice]!.text += text;
      if (logprobs !== undefined) choices[choice]!.logprobs?.push(...logprobs);
    },
    finish(choice, reason, stopReason) {
      choices[choice]!.reason = reason;
      choices[choice]!.stopReason = stopReason;
    },
    body(usage) {
      const object = chat ? 'chat.completion' : 'text_completion';
      const model = quoteJson(options.model);
      const head = `{"id":${quoteJson(options.id)},"object":"${object}","created":${options.created},"model":${model}`;
      return `${head},"choices":[${choices.map(choiceJson).join(',')}],"usage":${usageJson(usage)}}`;
    },
  };
}
