/** The picture of a result of `bench/disagg.js` as one HTML file: distributions of the modes and curves over load. Pure. */
import {
  colorOf,
  distributionChart,
  escapeHtml,
  htmlPage,
  htmlTable,
  lineChart,
} from '#millrace/simulate/replay/charts.js';
import { measured } from '#millrace/simulate/replay/summary.js';
import { nameOf, PERCENTILE } from './disagg-fleets.js';
import { bestOf, tableOf, verdictOf } from './disagg-result.js';

/** Curves are cut at so many times the target. */
const TOP = 2.5;
const MODES = /** @type {const} */ (['aggregated', 'disaggregated', 'conditional']);

/**
 * @param {readonly import('./disagg-result.js').Compared[]} all
 * @param {import('./disagg-result.js').Result} result
 * @param {{ workers: number, target: { ttftMs: number, itlMs: number } }} common
 */
export function renderDisagg(all, result, { workers, target }) {
  const best = MODES.map(mode => bestOf(all, mode));
  const distributions = (/** @type {'ttftMs' | 'itlMs'} */ figure) =>
    distributionChart(
      best.map(({ fleet, run }, index) => {
        return { label: nameOf(fleet), color: colorOf(index), dashed: false, values: measured(run[figure]) };
      }),
    );
  const curves = (
    /** @type {'disaggregated' | 'conditional'} */ mode,
    /** @type {'ttftMs' | 'itlMs'} */ figure,
  ) =>
    lineChart(
      all
        .filter(({ fleet }) => fleet.mode === mode || fleet.mode === 'aggregated')
        .map(({ fleet, points }, index) => ({
          label: nameOf(fleet),
          color: colorOf(index),
          dashed: fleet.mode === 'aggregated',
          points: points.map(
            point => /** @type {const} */ ([point.requestsPerSecond / workers, point[figure]]),
          ),
        })),
      { xUnit: 'requests/s/worker', yUnit: 'ms', limit: target[figure], top: TOP * target[figure] },
    );
  const rows = tableOf(result).map(row => Object.values(row).map(cell));
  const columns = Object.keys(tableOf(result)[0]);
  const sections = /** @type {const} */ (['disaggregated', 'conditional']).map(
    mode => `<h2>${mode}: every split over load</h2>
<h3>TTFT at p${PERCENTILE}</h3>${curves(mode, 'ttftMs')}<h3>ITL at p${PERCENTILE}</h3>${curves(mode, 'itlMs')}`,
  );
  return htmlPage(
    'Prefill and decode apart',
    `<h1>Prefill and decode apart</h1>
<p>Modelled milliseconds; every fleet has ${workers} workers. The level line of a curve is the target.</p>
<p><code>${escapeHtml(JSON.stringify(result.settings))}</code></p>
${htmlTable(columns, rows, 'conditional')}<p>${escapeHtml(verdictOf(result)).replaceAll('\n', '<br>')}</p>
<h2>The modes at the same load</h2>
<h3>Time to first token</h3>${distributions('ttftMs')}<h3>Time between tokens</h3>${distributions('itlMs')}
${sections.join('\n')}`,
  );
}

/** @param {unknown} value */
function cell(value) {
  return typeof value === 'number' ? String(Number(value.toPrecision(4))) : String(value ?? '-');
}
