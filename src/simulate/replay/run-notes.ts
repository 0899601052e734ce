/** What a run of a replay notes of its requests as they go, by index, and of the prompts that its workers compute. Owned by one run. */

/** See the head of the file. Times are virtual milliseconds, NaN until noted. */
export class RunNotes {
  readonly ttftMs: Float64Array;
  readonly itlMs: Float64Array;
  readonly e2eMs: Float64Array;
  readonly handoverMs: Float64Array;
  readonly computedTokens: Float64Array;
  errors = 0;
  outputTokens = 0;
  promptTokens = 0;
  cachedTokens = 0;
  /** Requests that have begun and have no first token. */
  waitingFirst = 0;
  /** Requests that have not ended. */
  open = 0;
  readonly #arrivedMs: Float64Array;
  readonly #prefilledMs: Float64Array;

  constructor(requests: number, workers: number) {
    const times = (): Float64Array => new Float64Array(requests).fill(Number.NaN);
    this.ttftMs = times();
    this.itlMs = times();
    this.e2eMs = times();
    this.handoverMs = times();
    this.#arrivedMs = times();
    this.#prefilledMs = times();
    this.computedTokens = new Float64Array(workers);
  }

  arrived(request: number, nowMs: number): void {
    this.#arrivedMs[request] = nowMs;
    this.waitingFirst += 1;
    this.open += 1;
  }

  /** A worker has computed a prompt of which it had `cachedTokens`. */
  computed(worker: number, promptTokens: number, cachedTokens: number): void {
    this.promptTokens += promptTokens;
    this.cachedTokens += cachedTokens;
    this.computedTokens[worker]! += promptTokens - cachedTokens;
  }

  /** Its prompt is computed, and another worker is to have it. */
  prefilled(request: number, nowMs: number): void {
    this.#prefilledMs[request] = nowMs;
  }

  handedOver(request: number, nowMs: number): void {
    this.handoverMs[request] = nowMs - this.#prefilledMs[request]!;
  }

  firstToken(request: number, nowMs: number): void {
    this.ttftMs[request] = nowMs - this.#arrivedMs[request]!;
    this.waitingFirst -= 1;
  }

  finished(request: number, tokens: number, nowMs: number): void {
    const e2eMs = nowMs - this.#arrivedMs[request]!;
    this.outputTokens += tokens;
    this.open -= 1;
    this.e2eMs[request] = e2eMs;
    if (tokens > 1) this.itlMs[request] = (e2eMs - this.ttftMs[request]!) / (tokens - 1);
  }

  rejected(): void {
    this.errors += 1;
    this.waitingFirst -= 1;
    this.open -= 1;
  }
}
