/**
 * What it costs to move KV blocks from a thread that has no agent, through a transfer port: the JavaScript of posting, and the
 * way of a completion from the engine's progress thread to a thread that spins, blocks or awaits.
 */
import { probeTransports } from '#millrace/transfer/index.js';
import { commit, machine, parseFlags, printResult, progress } from './lib/report.js';
import { portRow } from './lib/transfer-port.js';

const TRANSPORTS = ['memory', 'shm', 'tcp'];
const flags = parseFlags({
  usage: 'node bench/transfer-port.js [flags]',
  summary: 'Posting cost and completion latency of a transfer port, on a thread that has no agent.',
  flags: {
    json: { type: 'boolean', help: 'print one JSON object' },
    transports: { type: 'list', default: ['memory'], choices: TRANSPORTS, help: 'which to measure' },
    'block-bytes': {
      type: 'number',
      default: 64,
      min: 64,
      max: 1_048_576,
      integer: true,
      help: 'bytes of a block',
    },
    blocks: {
      type: 'number',
      default: 1024,
      min: 1,
      max: 16_384,
      integer: true,
      help: 'blocks of the long list',
    },
    rounds: {
      type: 'number',
      default: 50,
      min: 1,
      max: 1000,
      integer: true,
      help: 'batches; the median counts',
    },
    transfers: {
      type: 'number',
      default: 10_000,
      min: 100,
      max: 1_000_000,
      integer: true,
      help: 'transfers of a latency',
    },
  },
  examples: ['node bench/transfer-port.js', 'node bench/transfer-port.js --json --transports memory,shm'],
});

const available = probeTransports();
const bar = progress('transfer-port', flags.transports.length);
const rows = [];
const skipped = [];
for (const transport of flags.transports) {
  const info = available.find(({ name }) => name === transport);
  if (info?.available) rows.push(await portRow({ ...flags, transport }));
  else skipped.push({ transport, reason: info?.reason ?? 'not in this build' });
  bar.step(transport);
}
bar.done();
printResult(
  { bench: 'transfer-port', machine: machine(), commit: commit(), settings: flags, skipped, errors: 0, rows },
  {
    json: flags.json,
    table: rows.map(({ spinUs, waitUs, completionUs, yardstick, ...row }) => ({
      ...row,
      spinUsP50: spinUs.p50,
      waitUsP50: waitUs.p50,
      completionUsP50: completionUs.p50,
    })),
  },
);
