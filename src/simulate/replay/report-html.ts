/**
 * The report of a replay as one HTML file without scripts or outside files: the table of figures, TTFT distributions and the
 * load of each worker over time as SVG; live runs of the same requests stand beside theirs. Pure text from results.
 */
import {
  colorOf,
  distributionChart,
  escapeHtml,
  htmlPage,
  htmlTable,
  type Series,
  sampleChart,
} from './charts.js';
import type { LoadSamples } from './load-samples.js';
import type { ReplayResult } from './replay.js';
import { comparePolicies, figuresOf, measured, type ReplaySummary, type RunRecord } from './summary.js';
import { FIGURE_COLUMNS, figureRow, TABLE_COLUMNS, tableRows } from './table.js';

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
  return htmlPage(
    'millrace replay',
    `<h1>Replay of routing policies</h1>
<p>Times are modelled milliseconds. Load is prefill compute seconds offered under round-robin ÷ worker seconds.</p>
<p><code>${escapeHtml(JSON.stringify(settings))}</code></p>
${sections.join('\n')}`,
  );
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
  const replayTable = htmlTable(TABLE_COLUMNS, tableRows(summary), summary.best);
  const tables = live === undefined ? replayTable : `${renderLiveTable(live)}<h3>Replay</h3>${replayTable}`;
  return `<h2>${escapeHtml(summary.workload)}</h2>
<p>${summary.requests} requests over ${summary.arrivalSeconds.toFixed(1)} s; prefill load ${summary.load.prefill.toFixed(3)},
decode ${summary.load.decode.toFixed(3)} on top; an infinite cache would have ${(100 * summary.infiniteHitRate).toFixed(1)} % of the prompt tokens.</p>
${tables}
<h3>Time to first token</h3>${distributionChart(series)}
<h3>Requests in each worker over time</h3>${charts.join('\n')}`;
}

function renderLiveTable(live: ReadonlyMap<string, RunRecord>): string {
  const figures = Object.fromEntries([...live].map(([policy, record]) => [policy, figuresOf(record)]));
  const rows = Object.entries(figures).map(([policy, run]) => figureRow(policy, run));
  return `<h3>Live over HTTP</h3>${htmlTable(FIGURE_COLUMNS, rows, comparePolicies(figures).best)}`;
}

/** A line per worker: requests in it, running or waiting. */
function renderLoad({ count, workers, requests, periodMs }: LoadSamples): string {
  const rows = Array.from({ length: workers }, (_, worker) =>
    requests.subarray(worker * count, (worker + 1) * count),
  );
  return sampleChart(rows, (count * periodMs) / 1000);
}
