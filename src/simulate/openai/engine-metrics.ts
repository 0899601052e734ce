/**
 * What the answers of one mock engine measure, for the metrics page of whichever engine it plays. Fed by the answers, read
 * when the page is asked for. One per engine.
 */

const SECONDS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60] as const;

/** A histogram over fixed bounds in seconds. */
export class LatencyHistogram {
  readonly #counts = new Float64Array(SECONDS.length + 1);
  #sum = 0;

  /** Adds one observation. */
  observe(seconds: number): void {
    let at = 0;
    while (at < SECONDS.length && seconds > SECONDS[at]!) at++;
    this.#counts[at]!++;
    this.#sum += seconds;
  }

  /** The lines of the family `name`. */
  render(name: string, labels: string): string {
    let total = 0;
    let text = `# TYPE ${name} histogram\n`;
    this.#counts.forEach((count, at) => {
      total += count;
      text += `${name}_bucket{${labels},le="${SECONDS[at] ?? '+Inf'}"} ${total}\n`;
    });
    return `${text}${name}_sum{${labels}} ${this.#sum}\n${name}_count{${labels}} ${total}\n`;
  }
}

/** See the head of the file. */
export class EngineMetrics {
  readonly timeToFirstToken = new LatencyHistogram();
  readonly interTokenLatency = new LatencyHistogram();
  readonly requestLatency = new LatencyHistogram();
  /** Choices that ended, by reason. */
  readonly ended = { stop: 0, length: 0, abort: 0 };
}

/** A label value in the text format of Prometheus. */
export function labelText(value: string): string {
  return value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
}

/** One family with one sample. */
export function familyText(kind: 'gauge' | 'counter', name: string, labels: string, value: number): string {
  return `# TYPE ${name} ${kind}\n${name}{${labels}} ${value}\n`;
}
