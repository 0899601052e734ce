/**
 * The report of a replay as one HTML file without scripts or outside files: the table of figures, TTFT distributions and the
 * load of each worker over time as SVG; live runs of the same requests stand beside theirs. Pure text from results.
 */
import type { LoadSamples } from './load-samples.js';
import type { ReplayResult } from './replay.js';
import { comparePolicies, figuresOf, measured, type ReplaySummary, type RunRecord } from './summary.js';
import { FIGURE_COLUMNS, figureRow, TABLE_COLUMNS, tableRows } from './table.js';

const COLORS = ['#0b6e4f', '#c8553d', '#3b5ba5', '#b8860b', '#7b4b94', '#2a9d8f', '#6c757d', '#111827'];
const WIDTH = 860;
const HEIGHT = 260;
const LEFT = 60;
const BOTTOM = 30;
/** Steps of a distribution's line. */
const QUANTILES = 200;

const escapeHtml = (text: string): string =>
  text.replace(/[&<>"]/g, char => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[char]!);
const colorOf = (index: number): string => COLORS[index % COLORS.length]!;

/** One workload of a report. */
export interface ReportSection {
  readonly result: ReplayResult;
  readonly summary: ReplaySummary;
  /** What live runs of the same requests noted, by policy: shown beside the replay. */
  readonly live?: ReadonlyMap<string, RunRecord>;
}

/** Writes the report of one or more workloads. `settings` are shown as they are. */
export function renderReport(
  replays: readonly ReportSection[],
  settings: Readonly<Record<string, unknown>>,
): string {
  const sections = replays.map(renderSection);
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>millrace replay</title><style>
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:${WIDTH + 40}px;color:#1f2933}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.25em .7em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}.best{font-weight:600}svg{display:block;margin:.5em 0 1.5em}
svg text{font-size:11px;fill:#52606d}.scroll{overflow-x:auto}code{font-size:12px;overflow-wrap:anywhere}
</style></head><body><h1>Replay of routing policies</h1>
<p>Times are modelled milliseconds. Load is prefill compute seconds offered under round-robin ÷ worker seconds.</p>
<p><code>${escapeHtml(JSON.stringify(settings))}</code></p>
${sections.join('\n')}
</body></html>
`;
}

/** A line of the TTFT chart. */
interface Series {
  readonly label: string;
  readonly color: string;
  readonly dashed: boolean;
  /** Ascending. */
  readonly values: Float64Array;
}

function renderSection({ result, summary, live }: ReportSection): string {
  const runs = [...result.runs];
  const replayName = live === undefined ? '' : ', replay';
  const seriesOf = (records: Iterable<[string, RunRecord]>, name: string, dashed: boolean): Series[] =>
    [...records].map(([policy, { ttftMs }], index) => {
      return { label: `${policy}${name}`, color: colorOf(index), dashed, values: measured(ttftMs) };
    });
  const series = [
    ...seriesOf(live ?? [], ', live', false),
    ...seriesOf(runs, replayName, live !== undefined),
  ];
  const charts = runs.map(([policy, run]) => {
    const seen = live?.get(policy);
    const liveChart =
      seen === undefined ? '' : `<h4>${escapeHtml(policy)}, live</h4>${renderLoad(seen.load)}`;
    return `${liveChart}<h4>${escapeHtml(policy)}${replayName}</h4>${renderLoad(run.load)}`;
  });
  const replayTable = renderRows(TABLE_COLUMNS, tableRows(summary), summary.best);
  const tables = live === undefined ? replayTable : `${renderLiveTable(live)}<h3>Replay</h3>${replayTable}`;
  return `<h2>${escapeHtml(summary.workload)}</h2>
<p>${summary.requests} requests over ${summary.arrivalSeconds.toFixed(1)} s; prefill load ${summary.load.prefill.toFixed(3)},
decode ${summary.load.decode.toFixed(3)} on top; an infinite cache would have ${(100 * summary.infiniteHitRate).toFixed(1)} % of the prompt tokens.</p>
${tables}
<h3>Time to first token</h3>${renderTtft(series)}
<h3>Requests in each worker over time</h3>${charts.join('\n')}`;
}

function renderLiveTable(live: ReadonlyMap<string, RunRecord>): string {
  const figures = Object.fromEntries([...live].map(([policy, record]) => [policy, figuresOf(record)]));
  const rows = Object.entries(figures).map(([policy, run]) => figureRow(policy, run));
  return `<h3>Live over HTTP</h3>${renderRows(FIGURE_COLUMNS, rows, comparePolicies(figures).best)}`;
}

/** A table; the row of `best` stands out. */
function renderRows(columns: readonly string[], rows: readonly string[][], best: string): string {
  const head = columns.map(column => `<th>${escapeHtml(column)}</th>`).join('');
  const lines = rows.map(row => {
    const cells = row.map(cell => `<td>${escapeHtml(cell)}</td>`).join('');
    return `<tr${row[0] === best ? ' class="best"' : ''}>${cells}</tr>`;
  });
  return `<div class="scroll"><table><tr>${head}</tr>${lines.join('')}</table></div>`;
}

/** Share of requests (y) whose first token came within a time (x, logarithmic). */
function renderTtft(series: readonly Series[]): string {
  const all = series.flatMap(({ values }) => (values.length === 0 ? [] : [values[0]!, values.at(-1)!]));
  if (all.length === 0) return '<p>No request had a first token.</p>';
  const low = Math.floor(Math.log10(Math.max(Math.min(...all), 0.1)));
  const high = Math.max(Math.ceil(Math.log10(Math.max(...all))), low + 1);
  const x = (ms: number): number =>
    LEFT + ((Math.log10(Math.max(ms, 10 ** low)) - low) / (high - low)) * (WIDTH - LEFT - 10);
  const y = (share: number): number => 10 + (1 - share) * (HEIGHT - BOTTOM - 10);
  const lines = series.map(({ label, color, dashed, values }, index) => {
    const points = Array.from({ length: QUANTILES + 1 }, (_, step) => {
      const share = step / QUANTILES;
      const value = values[Math.max(0, Math.ceil(share * values.length) - 1)] ?? 0;
      return `${x(value).toFixed(1)},${y(share).toFixed(1)}`;
    });
    const text = `<text x="${LEFT + 10}" y="${26 + 15 * index}" style="fill:${color}">${escapeHtml(label)}</text>`;
    const dash = dashed ? ' stroke-dasharray="4 3"' : '';
    return `<polyline fill="none" stroke-width="1.6" stroke="${color}"${dash} points="${points.join(' ')}"/>${text}`;
  });
  const decades = Array.from({ length: high - low + 1 }, (_, step) => {
    const at = x(10 ** (low + step)).toFixed(1);
    return `<line x1="${at}" x2="${at}" y1="10" y2="${HEIGHT - BOTTOM}" stroke="#e4e7eb"/><text x="${at}" y="${HEIGHT - 12}" text-anchor="${step === high - low ? 'end' : 'middle'}">${10 ** (low + step)} ms</text>`;
  });
  const shares = [0, 0.5, 0.9, 1].map(
    share => `<text x="${LEFT - 8}" y="${y(share) + 4}" text-anchor="end">${100 * share} %</text>`,
  );
  return svg(`${decades.join('')}${shares.join('')}${lines.join('')}`);
}

/** A line per worker: requests in it, running or waiting. */
function renderLoad({ count, workers, requests, periodMs }: LoadSamples): string {
  const top = Math.max(1, ...requests);
  const x = (sample: number): number => LEFT + (sample / count) * (WIDTH - LEFT - 10);
  const y = (value: number): number => 10 + (1 - value / top) * (HEIGHT - BOTTOM - 10);
  const lines = Array.from({ length: workers }, (_, worker) => {
    const own = requests.subarray(worker * count, (worker + 1) * count);
    const points = Array.from(own, (value, sample) => `${x(sample + 1).toFixed(1)},${y(value).toFixed(1)}`);
    return `<polyline fill="none" stroke="${colorOf(worker)}" stroke-opacity="0.75" points="${points.join(' ')}"/>`;
  });
  const end = ((count * periodMs) / 1000).toFixed(0);
  return svg(
    `<text x="${LEFT - 8}" y="14" text-anchor="end">${top}</text><text x="${LEFT - 8}" y="${HEIGHT - BOTTOM}" text-anchor="end">0</text>` +
      `<text x="${LEFT}" y="${HEIGHT - 12}">0 s</text><text x="${WIDTH - 10}" y="${HEIGHT - 12}" text-anchor="end">${end} s</text>${lines.join('')}`,
  );
}

function svg(inside: string): string {
  return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img">${inside}</svg>`;
}
