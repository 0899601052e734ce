/**
 * OpenAI stream chunks (R7) of the token mode: `chat.completion.chunk` and streamed `text_completion` objects as SSE
 * frames. Everything that is constant in a stream is encoded once; a text frame is prefix + quoted text + suffix.
 * One format per request, owned by the socket thread.
 */
import type { FinishReason, TokenLogprobs, Usage } from '../../messages/delta.js';
import type { Api } from '../../messages/token-request.js';
import type { HeaderList } from '../http/http-exchange.js';
import { quoteJson } from './json-text.js';
import { logprobsJson } from './logprobs-json.js';
import { usageJson } from './usage-json.js';

/** Headers of every SSE response; the last one keeps nginx from collecting frames. */
export const EVENT_STREAM_HEADERS: HeaderList = [
  ['content-type', 'text/event-stream; charset=utf-8'],
  ['cache-control', 'no-cache'],
  ['x-accel-buffering', 'no'],
];

/** The frame that ends every OpenAI stream. */
export const DONE_FRAME = 'data: [DONE]\n\n';

/** A comment, which clients skip: sent into silence so that proxies keep the connection. */
export const KEEP_ALIVE_FRAME = ': keep-alive\n\n';

/** What is constant in a stream. */
export interface StreamFormatOptions {
  readonly api: Api;
  /** Response id, `chatcmpl-…` or `cmpl-…`. */
  readonly id: string;
  /** Unix seconds. */
  readonly created: number;
  readonly model: string;
  /** The client asked for a last chunk with usage: earlier chunks then carry `usage: null`. */
  readonly includeUsage: boolean;
  /** The client asked for usage on every chunk: pass it to `begin`, `text` and `finish`. */
  readonly continuousUsage: boolean;
}

/** Makes the frames of one stream; each method returns whole SSE frames, ready to be joined and written. */
export interface StreamFormat {
  /** First frame of a choice: the role for chat, '' for completions. */
  begin(choice: number, usage?: Usage): string;
  /** A piece of text of a choice, with the log-probabilities of its tokens where they are wanted. */
  text(choice: number, text: string, usage?: Usage, logprobs?: readonly TokenLogprobs[]): string;
  /** Last frame of a choice. `stopReason` is the stop string or token id that ended it, where one did. */
  finish(choice: number, reason: FinishReason, stopReason?: string | number | null, usage?: Usage): string;
  /** The frame with the total usage and no choice, after the last `finish` and before `done`. */
  usage(usage: Usage): string;
  readonly done: string;
}

/** Creates the format of one request. */
export function createStreamFormat(options: StreamFormatOptions): StreamFormat {
  const chat = options.api === 'chat';
  const object = chat ? 'chat.completion.chunk' : 'text_completion';
  const id = quoteJson(options.id);
  const head = `data: {"id":${id},"object":"${object}","created":${options.created},"model":${quoteJson(options.model)},`;
  const noUsage = options.includeUsage ? ',"usage":null}\n\n' : '}\n\n';
  const tail = (usage: Usage | undefined): string =>
    options.continuousUsage && usage !== undefined ? `,"usage":${usageJson(usage)}}\n\n` : noUsage;
  const textEnd = (logprobs: string): string =>
    `${chat ? '}' : ''},"logprobs":${logprobs},"finish_reason":null}]`;
  const plainTextEnd = textEnd('null');
  const textTail = plainTextEnd + noUsage;
  const textHeads: string[] = [];
  const textHead = (choice: number): string => {
    textHeads[choice] ??= `${head}"choices":[{"index":${choice},${chat ? '"delta":{"content":' : '"text":'}`;
    return textHeads[choice];
  };
  return {
    begin(choice, usage) {
      if (!chat) return '';
      const delta = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null';
      return `${head}"choices":[{"index":${choice},${delta}}]${tail(usage)}`;
    },
    text(choice, text, usage, logprobs) {
      let end = textTail;
      if (logprobs !== undefined) end = textEnd(logprobsJson(options.api, logprobs)) + tail(usage);
      else if (usage !== undefined) end = plainTextEnd + tail(usage);
      return textHead(choice) + quoteJson(text) + end;
    },
    finish(choice, reason, stopReason, usage) {
      const empty = chat ? '"delta":{}' : '"text":""';
      const stopped = stopReason === undefined ? '' : `,"stop_reason":${JSON.stringify(stopReason)}`;
      const ending = `"logprobs":null,"finish_reason":"${reason}"${stopped}`;
      return `${head}"choices":[{"index":${choice},${empty},${ending}}]${tail(usage)}`;
    },
    usage: usage => `${head}"choices":[],"usage":${usageJson(usage)}}\n\n`,
    done: DONE_FRAME,
  };
}
