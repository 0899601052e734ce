/**
 * Reads the Deltas out of a relayed answer for `generate()` (R7): the engine's SSE frames of `chat.completion.chunk` or
 * `text_completion` objects, cut anywhere. Usage is left to the answer, which knows it of every engine. Pure besides the unfinished frame that it keeps; socket thread.
 */
import type { Delta, FinishReason } from '../messages/delta.js';

const FRAME_END = /\r?\n\r?\n/;
const FINISH_REASONS: readonly string[] = ['stop', 'length', 'tool_calls', 'content_filter'];

interface ChunkDelta {
  readonly content?: string | null;
  readonly reasoning_content?: string | null;
  readonly reasoning?: string | null;
  readonly tool_calls?: readonly unknown[] | null;
}

interface ChunkChoice {
  readonly index?: number;
  readonly delta?: ChunkDelta;
  readonly text?: string;
  readonly logprobs?: unknown;
  readonly finish_reason?: string | null;
  readonly stop_reason?: string | number | null;
}

/** The reader of one answer. */
export class RelayedDeltas {
  readonly #decoder = new TextDecoder();
  #rest = '';

  /** The Deltas of all frames that are complete with these bytes. Throws SyntaxError for a frame that is no JSON. */
  push(bytes: Uint8Array): Delta[] {
    const frames = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split(FRAME_END);
    this.#rest = frames.pop()!;
    return frames.flatMap(frame => {
      const data = frame
        .split(/\r?\n/)
        .filter(line => line.startsWith('data:'))
        .map(line => line.slice('data:'.length).trim())
        .join('\n');
      if (data === '' || data === '[DONE]') return [];
      const { choices = [] } = JSON.parse(data) as { choices?: readonly ChunkChoice[] };
      return choices.map(choiceDelta).filter(delta => Object.keys(delta).length > 1);
    });
  }
}

function choiceDelta({ index = 0, delta, text, logprobs, ...end }: ChunkChoice): Delta {
  const content = delta?.content ?? text;
  const reasoning = delta?.reasoning_content ?? delta?.reasoning;
  const toolCalls = delta?.tool_calls;
  const finish = end.finish_reason;
  const stopReason = end.stop_reason;
  return {
    index,
    ...(content ? { text: content } : {}),
    ...(reasoning ? { reasoning } : {}),
    ...(toolCalls?.length ? { toolCalls } : {}),
    ...(logprobs ? { engineLogprobs: logprobs } : {}),
    ...(finish ? { finish: finishReason(finish) } : {}),
    ...(stopReason === undefined || stopReason === null ? {} : { stopReason }),
  };
}

/** An engine's own reason (`abort` is an error by then) counts as an ordinary stop. */
function finishReason(reason: string): FinishReason {
  return FINISH_REASONS.includes(reason) ? (reason as FinishReason) : 'stop';
}
