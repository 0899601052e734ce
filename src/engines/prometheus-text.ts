/**
 * Reading a few families out of a Prometheus text page (R5, the metrics scrape). An engine's page is some hundred
 * kilobytes of histograms of which we want six lines, once a second per worker: so it is searched, not parsed.
 * Format: Prometheus text exposition format 0.0.4.
 */

/** One line of a Prometheus page. */
export interface Sample {
  readonly labels: ReadonlyMap<string, string>;
  readonly value: number;
}

/**
 * All samples of exactly this family; a family whose name only begins alike is not taken. A sample that is cut short or
 * whose value is not a number (NaN included) is left out: absent is not 0.
 */
export function readSamples(page: string, family: string): Sample[] {
  const samples: Sample[] = [];
  for (let at = page.indexOf(family); at !== -1; at = page.indexOf(family, at + family.length)) {
    if (at > 0 && page[at - 1] !== '\n') continue;
    const after = at + family.length;
    if (page[after] !== '{' && page[after] !== ' ' && page[after] !== '\t') continue;
    const lineEnd = page.indexOf('\n', after);
    const sample = readSample(page.slice(after, lineEnd === -1 ? page.length : lineEnd));
    if (sample !== null) samples.push(sample);
  }
  return samples;
}

/** The sum over all samples of a family, such as those of the engines of a server; null when there are none. */
export function sumOf(page: string, family: string): number | null {
  const samples = readSamples(page, family);
  return samples.length === 0 ? null : samples.reduce((sum, sample) => sum + sample.value, 0);
}

/** Their mean, for a ratio; null when there are none. */
export function meanOf(page: string, family: string): number | null {
  const samples = readSamples(page, family);
  return samples.length === 0
    ? null
    : samples.reduce((sum, sample) => sum + sample.value, 0) / samples.length;
}

const LABEL = /\s*([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(,|\}|$)/y;
const ESCAPES: Readonly<Record<string, string>> = { '\\\\': '\\', '\\"': '"', '\\n': '\n' };

/** Reads `{label="value",…} number [timestamp]`, the part of a line after the family name. */
function readSample(line: string): Sample | null {
  const labels = new Map<string, string>();
  let at = 0;
  if (line.startsWith('{')) {
    at = line.startsWith('{}') ? 2 : 1;
    for (let closed = at === 2; !closed; ) {
      LABEL.lastIndex = at;
      const match = LABEL.exec(line);
      if (match === null) return null;
      labels.set(
        match[1]!,
        match[2]!.replace(/\\[\\"n]/g, pair => ESCAPES[pair]!),
      );
      at = LABEL.lastIndex;
      closed = match[3] === '}';
      // The format allows a comma before the closing brace.
      if (!closed && line[at] === '}') {
        at++;
        closed = true;
      }
    }
  }
  const text = line.slice(at).trim().split(/\s/, 1)[0]!;
  const value = text === '' ? Number.NaN : Number(text);
  return Number.isNaN(value) ? null : { labels, value };
}
