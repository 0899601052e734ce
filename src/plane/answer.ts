/**
 * The answer of a request in each of its forms: relayed stream, relayed body, folded body, token-mode stream, token-mode
 * body. One interface, so that a request does not care which it is. Runs on the socket thread; does no I/O of its own.
 */
import { strict as assert } from 'node:assert';
import { randomBytes } from 'node:crypto';
import type { FrameBatch } from '../engines/contract.js';
import { createStreamFormat, type StreamFormat } from '../frontend/openai/stream-format.js';
import { createUnaryFormat } from '../frontend/openai/unary-format.js';
import type { FinishReason, Usage } from '../messages/delta.js';
import type { Continuation, Plan } from '../messages/records.js';
import type { DetokenizerTable } from '../preprocess/detokenizer.js';
import type { AnswerStream } from './answer-port.js';
import type { BatchOutcome } from './batch-outcome.js';
import type { ClientStream } from './client-stream.js';
import { DeltaStream } from './delta-stream.js';
import { FoldAnswer } from './fold-answer.js';
import { type KeepContext, KeptIds } from './kept-ids.js';
import { RelayAnswer } from './relay-answer.js';
import { RelayRecord } from './relay-record.js';
import type { RequestContext } from './request-context.js';
import { type CallRange, TokenAnswer, type TokenOutput } from './token-answer.js';

const TOO_LONG = 'it is too long to be kept';

/** The answer of one request, whatever its form; owned by the request. */
export interface Answer {
  /** Takes the frames of a streamed engine answer, in order. `call`: the one that they answer. */
  take(batch: FrameBatch, call: CallRange): BatchOutcome;
  /** Takes a whole engine answer (relay mode); returns its completion tokens. */
  takeUnary(body: Buffer): number;
  /** Every choice has finished, or the engine's end marker was relayed. */
  readonly isComplete: boolean;
  /** Counts so far. */
  usage(): Usage;
  /** Choices of a call that have not finished, now that no more comes of it. */
  openChoices(call: CallRange): number[];
  /** What another worker needs to go on with these choices; else why none can, in words. Its ids are only lent. */
  continuation(choices: readonly number[]): Continuation | string;
  /** These choices have lost their worker: what is not shown of them yet is made anew, and more comes by a continuation. */
  cutOff(choices: readonly number[]): void;
  /** Gives back what was kept for a continuation. */
  release(): void;
  /** Writes what comes after the last choice of a stream: usage and end marker. */
  endStream(): void;
  /** The whole body of a unary answer that the engine streamed. */
  unaryBody(): string;
}

/** Opens the answer of a plan. `openClient` starts the client's stream; it is called once, for streams only. */
export function openAnswer(
  plan: Plan,
  context: Pick<RequestContext, 'clock' | 'detokenizerTable'> & KeepContext,
  openClient: () => AnswerStream,
): Answer {
  const keeps = plan.cannotMigrate === '' && context.limits.migrationsMax > 0;
  const kept = keeps ? new KeptIds(plan.choices, plan.promptTokens, context) : null;
  if (plan.mode !== 'token') {
    const record = kept === null ? null : new RelayRecord(plan.choices, kept);
    if (plan.mode === 'relayIds' && !plan.stream)
      return new FoldAnswer(plan, context.limits.unaryAnswerBytesMax, record);
    return new RelayAnswer(plan, plan.stream ? openClient() : null, record);
  }
  const prefix = plan.api === 'chat' ? 'chatcmpl' : 'cmpl';
  const identity = {
    api: plan.api,
    id: `${prefix}-${randomBytes(12).toString('hex')}`,
    created: Math.floor(context.clock.wallMs() / 1000),
    model: plan.model,
  };
  const table = context.detokenizerTable(plan.tokenizer);
  if (!plan.stream) {
    const format = createUnaryFormat({
      ...identity,
      choices: plan.choices,
      logprobs: plan.logprobs !== null,
    });
    const tokens = new TokenAnswer(plan, table, format, kept);
    return withoutUnary(
      plan,
      tokens,
      () => {},
      usage => format.body(usage),
    );
  }
  const client = openClient();
  if (client instanceof DeltaStream) return deltaAnswer(plan, table, client, kept);
  const { includeUsage, continuousUsage } = plan;
  const format = createStreamFormat({ ...identity, includeUsage, continuousUsage });
  const tokens: TokenAnswer = new TokenAnswer(
    plan,
    table,
    streamOutput(plan, format, client, () => (continuousUsage ? tokens.usage() : undefined)),
    kept,
  );
  const end = (usage: Usage): void =>
    client.pushText((includeUsage ? format.usage(usage) : '') + format.done);
  return withoutUnary(plan, tokens, end, () => assert.fail('a streamed answer has no body'));
}

function deltaAnswer(plan: Plan, table: DetokenizerTable, client: DeltaStream, kept: KeptIds | null): Answer {
  return withoutUnary(
    plan,
    new TokenAnswer(plan, table, client, kept),
    usage => client.usage(usage),
    () => assert.fail('a streamed answer has no body'),
  );
}

function withoutUnary(
  plan: Plan,
  tokens: TokenAnswer,
  end: (usage: Usage) => void,
  body: (usage: Usage) => string,
): Answer {
  return {
    take: (batch, call) => tokens.take(batch, call),
    openChoices: call => tokens.openChoices(call),
    continuation: choices => tokens.continuation(choices) ?? (plan.cannotMigrate || TOO_LONG),
    cutOff: () => tokens.cutOff(),
    release: () => tokens.release(),
    takeUnary: () => assert.fail('in token mode every engine answer is a stream'),
    get isComplete() {
      return tokens.isComplete;
    },
    usage: () => tokens.usage(),
    endStream: () => end(tokens.usage()),
    unaryBody: () => body(tokens.usage()),
  };
}

function streamOutput(
  plan: Plan,
  format: StreamFormat,
  client: ClientStream,
  usage: () => Usage | undefined,
): TokenOutput {
  const begun = new Array<boolean>(plan.choices).fill(false);
  const begin = (choice: number): string => {
    if (begun[choice] === true) return '';
    begun[choice] = true;
    return format.begin(choice, usage());
  };
  return {
    text(choice, text, logprobs) {
      client.pushText(begin(choice) + format.text(choice, text, usage(), logprobs));
    },
    finish(choice: number, reason: FinishReason, stopReason) {
      client.pushText(begin(choice) + format.finish(choice, reason, stopReason, usage()));
    },
  };
}
