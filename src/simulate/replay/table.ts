/** A replay's figures as rows of text, for the terminal and for the report. Pure. */
import type { ReplaySummary } from './summary.js';

/** Heads of the columns of `tableRows`. */
export const TABLE_COLUMNS: readonly string[] = [
  'policy',
  'TTFT mean',
  'p50',
  'p90',
  'p99',
  'ITL mean',
  'p99',
  'E2E mean',
  'hit rate',
  'gap',
  'imbalance',
  'out tok/s',
  'errors',
  'decisions/s',
  '× real time',
  '',
];

const whole = (value: number | null): string => (value === null ? '-' : value.toFixed(0));
const tenths = (value: number | null): string => (value === null ? '-' : value.toFixed(1));

/** One row per policy; the policy's name first. */
export function tableRows(summary: ReplaySummary): string[][] {
  return Object.entries(summary.policies).map(([policy, run]) => [
    policy,
    whole(run.ttftMs.mean),
    whole(run.ttftMs.p50),
    whole(run.ttftMs.p90),
    whole(run.ttftMs.p99),
    tenths(run.itlMs.mean),
    tenths(run.itlMs.p99),
    whole(run.e2eMs.mean),
    run.hitRate.toFixed(3),
    run.hitRateGap.toFixed(3),
    run.workImbalance.toFixed(2),
    whole(run.outputTokensPerSecond),
    String(run.errors),
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
