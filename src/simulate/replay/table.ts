/** Figures of runs as rows of text, for the terminal and for the report. Pure. */
import type { PolicyFigures, ReplaySummary } from './summary.js';

/** Heads of the columns of `figureRow`. */
export const FIGURE_COLUMNS: readonly string[] = [
  'policy',
  'TTFT mean',
  'p50',
  'p90',
  'p99',
  'ITL mean',
  'p99',
  'E2E mean',
  'hit rate',
  'imbalance',
  'out tok/s',
  'errors',
];

/** Heads of the columns of `tableRows`. */
export const TABLE_COLUMNS: readonly string[] = [...FIGURE_COLUMNS, 'gap', 'decisions/s', '× real time', ''];

const whole = (value: number | null): string => (value === null ? '-' : value.toFixed(0));
const tenths = (value: number | null): string => (value === null ? '-' : value.toFixed(1));

/** What every run has, replayed or live; the policy's name first. */
export function figureRow(policy: string, run: PolicyFigures): string[] {
  return [
    policy,
    whole(run.ttftMs.mean),
    whole(run.ttftMs.p50),
    whole(run.ttftMs.p90),
    whole(run.ttftMs.p99),
    tenths(run.itlMs.mean),
    tenths(run.itlMs.p99),
    whole(run.e2eMs.mean),
    run.hitRate.toFixed(3),
    run.workImbalance.toFixed(2),
    whole(run.outputTokensPerSecond),
    String(run.errors),
  ];
}

/** One row per policy of a replay. */
export function tableRows(summary: ReplaySummary): string[][] {
  return Object.entries(summary.policies).map(([policy, run]) => [
    ...figureRow(policy, run),
    run.hitRateGap.toFixed(3),
    whole(run.decisionsPerSecond),
    whole(run.virtualSecondsPerSecond),
    run.saturated ? 'saturated' : '',
  ]);
}

/** The table as lines of aligned columns. */
export function renderTable(summary: ReplaySummary): string {
  const rows = [[...TABLE_COLUMNS], ...tableRows(summary)];
  const widths = TABLE_COLUMNS.map((_, column) => Math.max(...rows.map(row => row[column]!.length)));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!)))
      .join('  ')
      .trimEnd();
  return rows.map(line).join('\n');
}
