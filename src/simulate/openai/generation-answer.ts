/**
 * One answer of a mock engine, from the accepted request to the last byte (R5 as the engine sees it): owns
 * the sequences of all its choices, turns each pass into one SSE frame per choice and one write, or collects a whole
 * body. Ends exactly once: finished, failed by an injected fault, or aborted by the client. Runs on the mock's thread.
 */
import type { HttpExchange } from '../../frontend/http/http-exchange.js';
import type { Clock } from '../../runtime/clock.js';
import type { AnswerVocabulary } from '../answer-vocabulary.js';
import type { OfferEnd } from '../disagg/handover-desk.js';
import type { Fault, FaultPlan } from '../faults.js';
import type { LiveEngine, SequenceOwner } from '../live-engine.js';
import type { EngineSequence } from '../sequence.js';
import { digestPrompt } from '../token-source.js';
import { type AnswerChoice, stateOf, usageOf } from './answer-choice.js';
import { ChoiceText } from './choice-text.js';
import type { EngineMetrics } from './engine-metrics.js';
import { DONE_FRAME, FrameFormat, type Usage, usageJson } from './frame-format.js';
import type { GenerationRequest } from './generation-request.js';
import { HttpError } from './http-error.js';
import type { TokenLogprobs } from './token-logprobs.js';

const SSE_HEADERS = [
  ['content-type', 'text/event-stream; charset=utf-8'],
  ['cache-control', 'no-cache'],
] as const;
const JSON_HEADERS = [['content-type', 'application/json']] as const;

/** How an answer ended: by its end, by the client, by an injected fault, or because the KV of its prompt did not come. */
export type AnswerEnd = 'finished' | 'aborted' | 'faulted' | 'failed';

/** What an answer shares with all others of its engine. */
export interface AnswerContext {
  readonly engine: LiveEngine;
  readonly vocabulary: AnswerVocabulary;
  readonly logprobs: TokenLogprobs;
  readonly metrics: EngineMetrics;
  readonly faults: FaultPlan;
  readonly clock: Clock;
  readonly model: string;
  /** Body of an error answer. */
  readonly errorBody: (error: HttpError) => unknown;
  /** Told once, when the answer has ended. */
  readonly onEnd: (how: AnswerEnd) => void;
}

/** See the head of the file. Starts on construction. */
export class GenerationAnswer implements SequenceOwner {
  readonly #exchange: HttpExchange;
  readonly #request: GenerationRequest;
  readonly #context: AnswerContext;
  readonly #format: FrameFormat;
  readonly #choices = new Map<EngineSequence<SequenceOwner>, AnswerChoice>();
  readonly #fault: Fault | null;
  #open: number;
  /** Frames that are ready and not yet written. */
  #frames = '';
  #started = false;
  #writable = true;
  #stalled = false;
  /** Every choice has ended and the last frames are made; they may still wait for the client. */
  #complete = false;
  #ended = false;
  #strike = false;
  /** Its blocks are kept for another engine, and the answer waits for that one. */
  #held: boolean;

  constructor(
    exchange: HttpExchange,
    id: string,
    request: GenerationRequest,
    fault: Fault | null,
    context: AnswerContext,
  ) {
    this.#exchange = exchange;
    this.#request = request;
    this.#context = context;
    this.#fault = fault;
    this.#held = request.handover?.spec.holdsAnswer === true;
    if (request.handover !== undefined) request.handover.onKeptEnd = end => this.#onKeptEnd(end);
    this.#open = request.prompts.length * request.n;
    const created = Math.floor(context.clock.wallMs() / 1000);
    this.#format = new FrameFormat({ api: request.api, id, created, model: context.model });
    exchange.onAborted(() => this.#end('aborted'));
    exchange.onWritable(() => {
      this.#writable = true;
      this.#write();
    });
    if (fault?.kind === 'reset') {
      this.#frames = '\n';
      this.#strikeNow(fault);
      return;
    }
    request.prompts.forEach((ids, at) => {
      this.#submit(ids, at);
    });
  }

  /** Queues the choices of one prompt. */
  #submit(promptIds: Uint32Array, promptAt: number): void {
    const { engine } = this.#context;
    const request = this.#request;
    const prompt = digestPrompt(
      promptIds,
      engine.core.settings.blockSize,
      request.cacheSalt,
      request.adapter,
    );
    const { handover, firstTokens } = request;
    const collects = !request.stream || request.stopStrings.length > 0 || request.native !== null;
    for (let choice = 0; choice < request.n; choice++) {
      const index = promptAt * request.n + choice;
      const sequence = engine.submit({
        prompt,
        maxTokens: request.maxTokens[promptAt]!,
        minTokens: request.minTokens,
        ignoreEos: request.ignoreEos,
        stopTokenIds: request.stopTokenIds,
        choice,
        owner: this,
        ...(handover === undefined ? {} : { handover: handover.sequence() }),
        ...(firstTokens === undefined ? {} : { firstTokens }),
      });
      this.#choices.set(sequence, {
        index,
        promptIds,
        head: this.#format.choiceHead(index),
        sequence,
        text: collects ? new ChoiceText(request.stopStrings, request.includeStopString) : null,
        ids: [],
        shown: '',
        ending: null,
        textOffset: 0,
        lastMs: sequence.arrivedMs,
      });
    }
  }

  onTokens(sequence: EngineSequence<SequenceOwner>): void {
    const choice = this.#choices.get(sequence)!;
    if (this.#ended || this.#strike || choice.ending !== null) return;
    let text = '';
    let count = 0;
    while (count < sequence.fresh.length && choice.ending === null) text += this.#take(choice, count++);
    // Tokens behind a stop string were drawn in vain.
    const ids = count === sequence.fresh.length ? sequence.fresh : sequence.fresh.slice(0, count);
    this.#measure(choice);
    const ended = choice.ending !== null;
    const fault = this.#fault;
    if (fault !== null && choice.index === 0) {
      const after = fault.kind === 'dieBefore' ? 0 : fault.afterTokens;
      this.#strike = sequence.generated > after || ended;
    }
    const { stream, native } = this.#request;
    if (!stream || native !== null) choice.ids.push(...ids);
    if (stream) this.#addFrames(choice, text, ids);
    if (ended) this.#open--;
  }

  onLoadFailed(): void {
    this.#fail(`the KV of the prompt did not come: ${this.#request.handover!.failure}`);
  }

  #onKeptEnd(end: OfferEnd): void {
    if (!this.#held) return;
    this.#held = false;
    if (end === 'released') this.flush();
    else this.#fail(`nobody took the KV of the prompt: its offer has ${end}`);
  }

  #stopHolding(): void {
    if (!this.#held) return;
    this.#held = false;
    this.#request.handover!.withdraw();
  }

  /** Ends the answer with an error: in a stream after its headers, as engines do. */
  #fail(message: string): void {
    if (this.#ended) return;
    const body = JSON.stringify(this.#context.errorBody(new HttpError(500, message)));
    const exchange = this.#exchange;
    const { stream } = this.#request;
    if (stream) {
      if (!this.#started) this.#start();
      exchange.write(`${this.#frames}data: ${body}\n\n${DONE_FRAME}`);
    }
    this.#end('failed');
    if (stream) exchange.end();
    else exchange.respond(500, JSON_HEADERS, body);
  }

  /** The engine gives the request up, as it was told to. */
  abort(): void {
    if (this.#complete) return;
    for (const choice of this.#choices.values()) {
      if (choice.ending !== null) continue;
      this.#context.engine.abort(choice.sequence);
      choice.ending = { finish: 'abort', stopReason: null };
      this.#context.metrics.ended.abort++;
      this.#open--;
      if (this.#request.stream) this.#addFrames(choice, '', []);
    }
    this.#stopHolding();
    this.flush();
  }

  flush(): void {
    if (this.#ended || this.#stalled) return;
    if (this.#held && !this.#strike) return;
    if (this.#strike) {
      this.#strikeNow(this.#fault!);
      return;
    }
    if (this.#open > 0) {
      this.#write();
      return;
    }
    if (this.#complete) return;
    this.#complete = true;
    if (this.#request.stream) {
      if (this.#request.includeUsage && this.#request.native === null)
        this.#frames += this.#format.usage(this.#usage());
      this.#frames += DONE_FRAME;
      this.#write();
      return;
    }
    const body = this.#wholeBody();
    this.#end('finished');
    this.#exchange.respond(200, JSON_HEADERS, body);
  }

  /** Text to show of the `at`-th fresh token, already escaped; sets `ending` when the choice has ended with it. */
  #take(choice: AnswerChoice, at: number): string {
    const { sequence, text } = choice;
    const { vocabulary, engine, metrics } = this.#context;
    const later = sequence.fresh.length - 1 - at;
    const finish = later === 0 ? sequence.finish : null;
    const token = sequence.fresh[at]!;
    if (finish !== null) choice.ending = { finish, stopReason: sequence.stopReason };
    // vLLM shows the text of a stop id only where it would show a stop string.
    const hidden = finish === 'stop' && !this.#request.includeStopString;
    let escaped = '';
    if (text === null) escaped = hidden ? '' : vocabulary.escapedTextOf(token);
    else {
      const mayStop = sequence.generated - later > this.#request.minTokens;
      const stop = text.push(hidden ? '' : vocabulary.textOf(token), mayStop);
      if (stop !== null) {
        choice.ending = { finish: 'stop', stopReason: stop };
        engine.abort(sequence);
      }
      if (this.#request.stream) escaped = JSON.stringify(text.take(choice.ending !== null)).slice(1, -1);
    }
    if (choice.ending !== null) metrics.ended[choice.ending.finish]++;
    return escaped;
  }

  #measure(choice: AnswerChoice): void {
    const { metrics, clock } = this.#context;
    const nowMs = clock.nowMs();
    const seconds = (nowMs - choice.lastMs) / 1000;
    const { sequence } = choice;
    if (sequence.generated === sequence.fresh.length) metrics.timeToFirstToken.observe(seconds);
    else metrics.interTokenLatency.observe(seconds);
    choice.lastMs = nowMs;
    if (choice.ending !== null) metrics.requestLatency.observe((nowMs - choice.sequence.arrivedMs) / 1000);
  }

  #addFrames(choice: AnswerChoice, escaped: string, ids: readonly number[]): void {
    const request = this.#request;
    const { sequence } = choice;
    if (request.native !== null) {
      const freshText = JSON.parse(`"${escaped}"`) as string;
      choice.shown += freshText;
      this.#frames += request.native.frame(stateOf(choice, freshText, ids));
      return;
    }
    const first = sequence.generated === ids.length;
    const prompt = first && request.returnTokenIds ? choice.promptIds.join(',') : null;
    const chat = request.api === 'chat';
    if (chat && first) {
      const promptIds = prompt === null ? '' : `,"prompt_token_ids":[${prompt}]`;
      this.#frames += this.#format.role(choice.index, promptIds + this.#usageTail(choice, 0));
    }
    const { returnTokenIds, idsOnly } = request;
    const tail = this.#usageTail(choice, sequence.generated);
    this.#frames += this.#format.delta(
      choice.head,
      idsOnly ? '' : escaped,
      this.#logprobsJson(choice, ids),
      choice.ending,
      returnTokenIds || idsOnly ? ids : null,
      chat ? null : prompt,
      tail,
    );
  }

  /** `logprobs` of the next tokens of a choice. */
  #logprobsJson(choice: AnswerChoice, ids: readonly number[]): string {
    const { api, logprobs: wanted } = this.#request;
    if (wanted === null) return 'null';
    const { logprobs } = this.#context;
    const json = logprobs.json(api, ids, choice.textOffset, wanted);
    for (const id of ids) choice.textOffset += logprobs.lengthOf(id);
    return json;
  }

  #usageTail(choice: AnswerChoice, completionTokens: number): string {
    if (!this.#request.includeUsage) return '';
    if (!this.#request.continuousUsage) return ',"usage":null';
    const { cachedTokens } = choice.sequence;
    return `,"usage":${usageJson({ promptTokens: choice.promptIds.length, completionTokens, cachedTokens })}`;
  }

  #usage(): Usage {
    return usageOf(this.#choices.values(), this.#request.n);
  }

  #wholeBody(): string {
    const { returnTokenIds: wantsIds, idsOnly, native } = this.#request;
    if (native !== null) {
      return native.whole(
        [...this.#choices.values()].map(choice => {
          choice.shown = choice.text!.take(true);
          return stateOf(choice, choice.shown, choice.ids);
        }),
      );
    }
    const choices = [...this.#choices.values()].map(choice => ({
      index: choice.index,
      text: idsOnly ? '' : choice.text!.take(true),
      logprobs: this.#logprobsJson(choice, choice.ids),
      tokenIds: wantsIds || idsOnly ? choice.ids : null,
      promptTokenIds: wantsIds ? choice.promptIds : null,
      ...choice.ending!,
    }));
    const [first] = this.#choices.values();
    return this.#format.whole(choices, this.#usage(), this.#request.extras?.(first!));
  }

  /** Writes what is ready, unless the client is behind; `onWritable` comes back here then. */
  #write(): void {
    if (this.#ended || !this.#writable) return;
    if (this.#frames !== '') {
      if (!this.#started) this.#start();
      const frames = this.#frames;
      this.#frames = '';
      this.#writable = this.#exchange.write(frames);
    }
    if (!this.#complete) return;
    this.#end('finished');
    this.#exchange.end();
  }

  #start(): void {
    this.#started = true;
    this.#exchange.start(200, this.#request.stream ? SSE_HEADERS : JSON_HEADERS);
  }

  /** The injected fault takes place: the newest frame is not sent, or only a half of it. */
  #strikeNow(fault: Fault): void {
    const { faults } = this.#context;
    faults.record(fault.kind);
    const exchange = this.#exchange;
    const isBad = fault.kind === 'badFrame';
    if (isBad || fault.kind === 'halfFrame' || fault.kind === 'reset') {
      const data = this.#frames === '' ? this.#format.whole([], this.#usage()) : this.#frames;
      const last = Math.max(0, data.lastIndexOf('data: '));
      if (!this.#started) this.#start();
      const half = data.slice(0, last + Math.ceil((data.length - last) / 2));
      exchange.write(isBad ? `${half}\n\n` : half);
    }
    this.#frames = '';
    if (isBad || fault.kind === 'stall') {
      this.#stalled = true;
      return;
    }
    this.#end('faulted');
    exchange.abort();
  }

  #end(how: AnswerEnd): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#frames = '';
    const { engine, metrics, onEnd } = this.#context;
    for (const choice of this.#choices.values()) {
      if (choice.ending === null) metrics.ended.abort++;
      engine.abort(choice.sequence);
    }
    this.#stopHolding();
    onEnd(how);
  }
}
