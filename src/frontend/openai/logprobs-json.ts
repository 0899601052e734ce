/** OpenAI's `logprobs` of a choice as JSON text (R7), shared by the stream and the unary format. Pure, socket thread. */
import type { TokenLogprob, TokenLogprobs } from '../../messages/delta.js';
import type { Api } from '../../messages/token-request.js';
import { quoteJson } from './json-text.js';

const tokenJson = ({ text, bytes, logprob }: TokenLogprob): string =>
  `"token":${quoteJson(text)},"logprob":${logprob},"bytes":[${bytes.join(',')}]`;

function chatJson(entry: TokenLogprobs): string {
  const top = entry.top.map(one => `{${tokenJson(one)}}`).join(',');
  return `{${tokenJson(entry)},"top_logprobs":[${top}]}`;
}

/** Of tokens with the same text the last one counts, as in the dictionaries of stock engines. */
function topJson(top: readonly TokenLogprob[]): string {
  const byText = new Map(top.map(one => [one.text, one.logprob]));
  return `{${[...byText].map(([text, logprob]) => `${quoteJson(text)}:${logprob}`).join(',')}}`;
}

/** The value of `logprobs` for the next tokens of a choice. */
export function logprobsJson(api: Api, entries: readonly TokenLogprobs[]): string {
  if (api === 'chat') return `{"content":[${entries.map(chatJson).join(',')}]}`;
  const list = (one: (entry: TokenLogprobs) => string | number): string => entries.map(one).join(',');
  const offsets = list(entry => entry.textOffset);
  const logprobs = list(entry => entry.logprob);
  const tokens = list(entry => quoteJson(entry.text));
  const top = list(entry => topJson(entry.top));
  return `{"text_offset":[${offsets}],"token_logprobs":[${logprobs}],"tokens":[${tokens}],"top_logprobs":[${top}]}`;
}
