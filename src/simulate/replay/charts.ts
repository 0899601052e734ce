/**
 * Charts of reports as SVG text: distributions of times, and lines over numbers. No scripts, no outside files. Pure.
 */

const COLORS = ['#0b6e4f', '#c8553d', '#3b5ba5', '#b8860b', '#7b4b94', '#2a9d8f', '#6c757d', '#111827'];
/** Of a chart, in pixels. */
export const CHART_WIDTH = 860;
const HEIGHT = 260;
const LEFT = 60;
const BOTTOM = 30;
const TOP = 10;
/** Steps of a distribution's line. */
const QUANTILES = 200;

/** Text as HTML. */
export const escapeHtml = (text: string): string =>
  text.replace(/[&<>"]/g, char => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[char]!);

/** Colour of the line `index`, the same in every chart. */
export const colorOf = (index: number): string => COLORS[index % COLORS.length]!;

/** A line of a chart of distributions. */
export interface Series {
  readonly label: string;
  readonly color: string;
  readonly dashed: boolean;
  /** Milliseconds, ascending. */
  readonly values: Float64Array;
}

/** A line of a chart of numbers; its points are in order of x. */
export interface Line {
  readonly label: string;
  readonly color: string;
  readonly dashed: boolean;
  readonly points: readonly (readonly [x: number, y: number])[];
}

/** Share of the values (y) that are at or below a time (x, logarithmic). */
export function distributionChart(series: readonly Series[]): string {
  const all = series.flatMap(({ values }) => (values.length === 0 ? [] : [values[0]!, values.at(-1)!]));
  if (all.length === 0) return '<p>No request had this time.</p>';
  const low = Math.floor(Math.log10(Math.max(Math.min(...all), 0.1)));
  const high = Math.max(Math.ceil(Math.log10(Math.max(...all))), low + 1);
  const x = (ms: number): number =>
    LEFT + ((Math.log10(Math.max(ms, 10 ** low)) - low) / (high - low)) * (CHART_WIDTH - LEFT - 10);
  const y = (share: number): number => TOP + (1 - share) * (HEIGHT - BOTTOM - TOP);
  const lines = series.map(({ label, color, dashed, values }, index) => {
    const points = Array.from({ length: QUANTILES + 1 }, (_, step) => {
      const share = step / QUANTILES;
      const value = values[Math.max(0, Math.ceil(share * values.length) - 1)] ?? 0;
      return `${x(value).toFixed(1)},${y(share).toFixed(1)}`;
    });
    return polyline(points, color, dashed) + legend(label, color, index);
  });
  const decades = Array.from({ length: high - low + 1 }, (_, step) => {
    const at = x(10 ** (low + step)).toFixed(1);
    return `<line x1="${at}" x2="${at}" y1="${TOP}" y2="${HEIGHT - BOTTOM}" stroke="#e4e7eb"/><text x="${at}" y="${HEIGHT - 12}" text-anchor="${step === high - low ? 'end' : 'middle'}">${10 ** (low + step)} ms</text>`;
  });
  const shares = [0, 0.5, 0.9, 1].map(
    share => `<text x="${LEFT - 8}" y="${y(share) + 4}" text-anchor="end">${100 * share} %</text>`,
  );
  return svg(`${decades.join('')}${shares.join('')}${lines.join('')}`);
}

/**
 * Numbers over numbers, both from 0, with `limit` as a level line. What is above `top` is drawn at the upper edge: one
 * point far off would flatten all others.
 */
export function lineChart(
  lines: readonly Line[],
  { xUnit, yUnit, limit, top }: { xUnit: string; yUnit: string; limit: number; top: number },
): string {
  const right = Math.max(...lines.flatMap(({ points }) => points.map(([at]) => at)), 0) || 1;
  const x = (value: number): number => LEFT + (value / right) * (CHART_WIDTH - LEFT - 10);
  const y = (value: number): number => TOP + (1 - Math.min(value / top, 1)) * (HEIGHT - BOTTOM - TOP);
  const drawn = lines.map(({ label, color, dashed, points }, index) => {
    const coordinates = points.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`);
    return polyline(coordinates, color, dashed) + legend(label, color, index);
  });
  const level = y(limit).toFixed(1);
  return svg(
    `<line x1="${LEFT}" x2="${CHART_WIDTH - 10}" y1="${level}" y2="${level}" stroke="#9aa5b1"/>` +
      `<text x="${LEFT - 8}" y="${Number(level) + 4}" text-anchor="end">${limit} ${escapeHtml(yUnit)}</text>` +
      `<text x="${LEFT - 8}" y="${HEIGHT - BOTTOM}" text-anchor="end">0</text>` +
      `<text x="${CHART_WIDTH - 10}" y="${HEIGHT - 12}" text-anchor="end">${right.toPrecision(3)} ${escapeHtml(xUnit)}</text>` +
      drawn.join(''),
  );
}

/** A line per row of `rows` over evenly spaced samples, from 0 to the largest value of all. */
export function sampleChart(rows: readonly Uint32Array[], seconds: number): string {
  const top = rows.reduce((most, row) => row.reduce((a, b) => Math.max(a, b), most), 1);
  const y = (value: number): number => TOP + (1 - value / top) * (HEIGHT - BOTTOM - TOP);
  const lines = rows.map((row, index) => {
    const x = (sample: number): number => LEFT + (sample / row.length) * (CHART_WIDTH - LEFT - 10);
    const points = Array.from(row, (value, sample) => `${x(sample + 1).toFixed(1)},${y(value).toFixed(1)}`);
    return `<polyline fill="none" stroke="${colorOf(index)}" stroke-opacity="0.75" points="${points.join(' ')}"/>`;
  });
  return svg(
    `<text x="${LEFT - 8}" y="14" text-anchor="end">${top}</text><text x="${LEFT - 8}" y="${HEIGHT - BOTTOM}" text-anchor="end">0</text>` +
      `<text x="${LEFT}" y="${HEIGHT - 12}">0 s</text><text x="${CHART_WIDTH - 10}" y="${HEIGHT - 12}" text-anchor="end">${seconds.toFixed(0)} s</text>${lines.join('')}`,
  );
}

/** A page of its own: `body` is HTML. */
export function htmlPage(title: string, body: string): string {
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${escapeHtml(title)}</title><style>
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:${CHART_WIDTH + 40}px;color:#1f2933}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}.best{font-weight:600}svg{display:block;margin:.5em 0 1.5em}
svg text{font-size:11px;fill:#52606d}.scroll{overflow-x:auto}code{font-size:12px;overflow-wrap:anywhere}
</style></head><body>${body}
</body></html>
`;
}

/** A table; the row of `best`, by its first cell, stands out. */
export function htmlTable(
  columns: readonly string[],
  rows: readonly (readonly string[])[],
  best: string,
): string {
  const head = columns.map(column => `<th>${escapeHtml(column)}</th>`).join('');
  const lines = rows.map(row => {
    const cells = row.map(cell => `<td>${escapeHtml(cell)}</td>`).join('');
    return `<tr${row[0] === best ? ' class="best"' : ''}>${cells}</tr>`;
  });
  return `<div class="scroll"><table><tr>${head}</tr>${lines.join('')}</table></div>`;
}

function polyline(points: readonly string[], color: string, dashed: boolean): string {
  const dash = dashed ? ' stroke-dasharray="4 3"' : '';
  return `<polyline fill="none" stroke-width="1.6" stroke="${color}"${dash} points="${points.join(' ')}"/>`;
}

function legend(label: string, color: string, index: number): string {
  return `<text x="${LEFT + 10}" y="${26 + 15 * index}" style="fill:${color}">${escapeHtml(label)}</text>`;
}

function svg(inside: string): string {
  return `<svg viewBox="0 0 ${CHART_WIDTH} ${HEIGHT}" width="${CHART_WIDTH}" height="${HEIGHT}" role="img">${inside}</svg>`;
}
