// Promise: `millrace kv info` names every transport and what the machine lacks, and UCX or its absence is part of the answer.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { systemProbe } from '#millrace/cli/doctor/probe.js';
import { type KvInfo, kvInfo, kvReport } from '#millrace/cli/kv.js';
import { type TransportInfo, type UcxInfo, ucxInfo } from '#millrace/transfer/index.js';
import { readConfig, readTransports } from '#millrace/transfer/ucx/ucx-info.js';

const MAIN = fileURLToPath(new URL('../../../dist/cli/main.js', import.meta.url));

const TRANSPORTS: readonly TransportInfo[] = [
  { name: 'shm', available: true, reason: '', memoryKinds: 1, sameHostOnly: true, oneSided: true },
  { name: 'cuda', available: false, reason: 'no driver', memoryKinds: 3, sameHostOnly: true, oneSided: true },
];
const UCX: UcxInfo = {
  available: true,
  reason: '',
  version: '1.20.0',
  transports: [
    { name: 'rc_mlx5', device: 'mlx5_0:1', oneSided: true },
    { name: 'tcp', device: 'eth0', oneSided: false },
  ],
  oneSided: true,
  config: { UCX_TLS: 'all' },
};

/** Runs the command to its end. */
async function millrace(...words: string[]): Promise<{ code: number; out: string; err: string }> {
  const child = spawn(process.execPath, [MAIN, ...words], { stdio: ['ignore', 'pipe', 'pipe'] });
  let out = '';
  let err = '';
  child.stdout.on('data', data => (out += data));
  child.stderr.on('data', data => (err += data));
  const [code] = (await once(child, 'close')) as [number];
  return { code, out, err };
}

t.test('the table names transports, UCX devices and, where asked, settings', async t => {
  const info = await kvInfo(
    systemProbe(),
    () => [...TRANSPORTS],
    async () => UCX,
  );
  const said = kvReport(info, true);
  t.match(said, /shm +yes +host +this host +one-sided/);
  t.match(said, /cuda +no +host, device +this host +one-sided +no driver/);
  t.match(said, /UCX 1\.20\.0: its devices move bytes between hosts/);
  t.match(said, /rc_mlx5 +mlx5_0:1 +one-sided\n +tcp +eth0\n/);
  t.match(said, /UCX_TLS=all/);
  t.notMatch(kvReport(info, false), /UCX_TLS/);
});

t.test('without the addon and without UCX it says so, and what to install', async t => {
  const ucx = await ucxInfo(() => Promise.reject(new Error('Cannot find package')));
  t.match(ucx, { available: false, version: null, transports: [], oneSided: false });
  const info = await kvInfo(
    systemProbe(),
    () => {
      throw new Error('transfers need the addon: not built');
    },
    async () => ucx,
  );
  t.match(kvReport(info, false), /No transports: transfers need the addon: not built/);
  t.match(kvReport(info, false), /UCX: koffi is not installed.*npm install koffi/);
  const unfound = await ucxInfo(async () => {
    const koffi = await import('koffi');
    const load = (): never => {
      throw new Error('Failed to load shared library: libucp.so.0: cannot open shared object file');
    };
    return { ...koffi, load };
  });
  t.match(unfound.reason, /UCX is not installed \(Debian: apt-get install -y libucx0\)/);
});

t.test('what UCX prints is read', async t => {
  const said = [
    '#         resource 2  :  md 1  dev 2  flags -- tcp/eth0',
    '#         resource 3  :  md 2  dev 3  flags -- rc_mlx5/mlx5_0:1',
    '# something else',
  ].join('\n');
  t.same(readTransports(said), [
    { name: 'tcp', device: 'eth0', oneSided: false },
    { name: 'rc_mlx5', device: 'mlx5_0:1', oneSided: true },
  ]);
  t.same(readConfig('# a title\nUCX_TLS=all\nUCX_NET_DEVICES=\nOTHER=1\n'), {
    UCX_TLS: 'all',
    UCX_NET_DEVICES: '',
  });
});

t.test('the command answers with one JSON object, on this machine', async t => {
  const { code, out, err } = await millrace('kv', 'info', '--json');
  t.equal(code, 0, err);
  const info = JSON.parse(out) as KvInfo;
  if (info.reason === '') t.ok(info.transports.some(({ name }) => name === 'ucx'));
  else t.comment(`no transports: ${info.reason}`);
  t.type(info.machine.lockedMemory, 'string');
  if (info.ucx.available) {
    t.match(info.ucx.version, /^\d+\.\d+\.\d+/);
    t.ok(info.ucx.transports.length > 0 && info.ucx.config.UCX_TLS !== undefined, 'asked through koffi');
  } else {
    t.match(info.ucx.reason, /install/);
    t.comment(`UCX is not asked: ${info.ucx.reason}`);
  }
});

t.test('wrong words are told with the right ones', async t => {
  const none = await millrace('kv');
  t.equal(none.code, 2);
  t.match(none.err, /subcommand info; got none/);
  const flag = await millrace('kv', 'info', '--jason');
  t.equal(flag.code, 2);
  t.match(flag.err, /did you mean --json/);
  const help = await millrace('kv', 'info', '--help');
  t.equal(help.code, 0);
  t.match(help.out, /Examples:/);
});
