// Promise: over TLS a worker links only to a plane whose certificate it can verify, and a plane with a CA admits only
// workers with a certificate of it; wrong files are told by the setting that names them.
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect as connectSocket } from 'node:net';
import { tmpdir } from 'node:os';
import { connect as connectTls } from 'node:tls';
import t, { type Test } from 'tap';
import { loadConfig } from '#millrace/config.js';
import { contextOf, type LinkTls, readLinkTls } from '#millrace/engines/link/link-tls.js';
import { linkAccess } from '#millrace/plane/link-access.js';
import { TOKENIZER_NAMES } from '#millrace/preprocess/tokenizers/load.js';
import { POLICY_NAMES } from '#millrace/router/policies/policies.js';
import { createLogger } from '#millrace/runtime/logger.js';
import {
  ask,
  DONE,
  idsFrame,
  LOOPBACK,
  type PlaneEnd,
  Recorded,
  SSE,
  signal,
  startEngine,
  startPlane,
  startWorker,
} from './link-fixture.js';
import { TestCa } from './test-certificates.js';

const HOST = '127.0.0.1';
const SECURED = { ...LOOPBACK, isTls: true } as typeof LOOPBACK;
const ca = new TestCa('millrace test');
const other = new TestCa('somebody else');
const planeTls: LinkTls = { ...ca.issue(HOST), ca: ca.cert };
const workerTls: LinkTls = { ...ca.issue('worker'), ca: ca.cert };

const engine = (t: Test): Promise<string> =>
  startEngine(t, (_request, response) => response.writeHead(200, SSE).end(idsFrame([1, 2, 3]) + DONE));

/** What the worker side logs of its first attempt, which has to fail. */
async function refusal(t: Test, plane: PlaneEnd, tls: LinkTls | null): Promise<string> {
  const told = signal<string>();
  const write = (line: string): void => told.set(line);
  const logger = createLogger({ level: 'warn', format: 'text', write });
  const { link } = startWorker(t, plane.address, await engine(t), { tls, secret: null, logger });
  const line = await told.done;
  t.notOk(link.isUp);
  return line;
}

t.test('both sides with certificates, no secret: a stream', async t => {
  const plane = await startPlane(t, { address: SECURED, secret: null, tls: planeTls });
  startWorker(t, plane.address, await engine(t), { secret: null, tls: workerTls });
  const link = await plane.linked;
  const answer = new Recorded();
  link.send(ask(), answer);
  await answer.over;
  t.match(answer, { ids: [[1, 2, 3]], fault: null, linkIds: 3 });
  const { traffic, connections } = plane.server;
  t.same(connections, { opened: 1, ended: 0, refused: 0 });
  t.ok(traffic.framesIn >= 4 && traffic.framesOut >= 3, 'frames are counted');
  t.ok(traffic.bytesIn > traffic.framesIn * 16 && traffic.bytesOut > traffic.framesOut * 16);
});

t.test('a plane that is not the one: the worker tells it nothing', async t => {
  const wrong: [name: string, tls: LinkTls, message: RegExp][] = [
    ['of another CA', { ...other.issue(HOST), ca: ca.cert }, /certificate of the plane is not accepted/],
    ['of another host', { ...ca.issue('plane.internal'), ca: ca.cert }, /ERR_TLS_CERT_ALTNAME_INVALID/],
  ];
  for (const [name, tls, message] of wrong) {
    const plane = await startPlane(t, { address: SECURED, secret: null, tls });
    const line = await refusal(t, plane, workerTls);
    t.match(line, message, name);
    t.match(line, 'fault=auth');
    t.equal(plane.server.connections.opened, 0);
  }
  const plane = await startPlane(t, { address: SECURED, tls: planeTls });
  t.match(
    await refusal(t, plane, null),
    /fault=auth/,
    'without a CA of its own the worker trusts that of Node.js only',
  );
});

t.test('a worker that is not one: never admitted', async t => {
  const plane = await startPlane(t, { address: SECURED, secret: null, tls: planeTls });
  for (const own of [{ cert: null, key: null }, other.issue('worker')]) {
    await refusal(t, plane, { ...own, ca: ca.cert });
    t.equal(plane.server.connections.opened, 0);
  }
  t.ok(plane.server.connections.refused >= 2);
  const open = connectSocket(plane.address.port, HOST);
  open.on('error', () => {});
  open.write('MRLK without TLS');
  await once(open, 'close');
  t.ok(plane.server.connections.refused >= 3, 'one without TLS neither');
});

t.test('a renewed certificate counts for the next connection', async t => {
  const plane = await startPlane(t, { address: SECURED, secret: null, tls: planeTls });
  const shown = async (): Promise<string | undefined> => {
    const socket = connectTls({ port: plane.address.port, host: HOST, ...contextOf(workerTls) });
    await once(socket, 'secureConnect');
    const { serialNumber } = socket.getPeerCertificate();
    socket.destroy();
    return serialNumber;
  };
  const before = await shown();
  plane.server.renewTls({ ...ca.issue(HOST), ca: ca.cert });
  t.not(await shown(), before);
});

t.test('files', async t => {
  const folder = mkdtempSync(`${tmpdir()}/tls-`);
  t.teardown(() => rmSync(folder, { recursive: true }));
  const file = (source: string, name: string | null, text?: string) => {
    if (name === null) return { name, source };
    const path = `${folder}/${name}`;
    if (text !== undefined) writeFileSync(path, text);
    return { name: path, source };
  };
  const { cert, key } = planeTls;
  const none = file('ca', null);
  t.equal(readLinkTls(file('cert', null), file('key', null), none), null);
  t.same(readLinkTls(file('cert', 'c', cert!), file('key', 'k', key!), file('ca', 'a', ca.cert)), planeTls);
  t.same(readLinkTls(file('cert', null), file('key', null), file('ca', 'a')), {
    cert: null,
    key: null,
    ca: ca.cert,
  });
  const wrong: [cert: string | null, key: string | null, ca: string | null, message: RegExp][] = [
    ['c', null, null, /cert and key belong together/],
    [null, 'k', null, /cert and key belong together/],
    ['missing', 'k', null, /cert .*missing cannot be read: ENOENT/],
    ['k', 'k', null, /cert .* holds no certificate as PEM/],
    ['c', 'c', null, /key .* cannot be used with cert/],
    ['c', 'others', null, /key .* cannot be used with cert .*mismatch/],
    [null, null, 'k', /ca .* holds no certificate as PEM/],
  ];
  file('key', 'others', other.issue(HOST).key);
  for (const [certName, keyName, caName, message] of wrong)
    t.throws(() => readLinkTls(file('cert', certName), file('key', keyName), file('ca', caName)), {
      code: 'MILLRACE_CONFIG',
      message,
    });
});

t.test('settings that do not go together', t => {
  const folder = mkdtempSync(`${tmpdir()}/tls-`);
  t.teardown(() => rmSync(folder, { recursive: true }));
  const linkTlsCert = `${folder}/cert`;
  const linkTlsKey = `${folder}/key`;
  const linkTlsCa = `${folder}/ca`;
  writeFileSync(linkTlsCert, planeTls.cert!);
  writeFileSync(linkTlsKey, planeTls.key!);
  writeFileSync(linkTlsCa, ca.cert);
  const accessOf = (options: Readonly<Record<string, unknown>>) =>
    linkAccess(loadConfig({ policies: POLICY_NAMES, tokenizers: TOKENIZER_NAMES }, { options }));
  const pair = { linkTlsCert, linkTlsKey };
  const anywhere = 'tls://0.0.0.0:7400';
  t.equal(accessOf(pair), null, 'no links are taken');
  t.match(accessOf({ linkListen: anywhere, ...pair, linkTlsCa }), { secret: null, tls: planeTls });
  const wrong: [options: Readonly<Record<string, unknown>>, message: RegExp][] = [
    [{ linkListen: anywhere }, /needs linkTlsCert and linkTlsKey/],
    [{ linkListen: anywhere, linkTlsCa }, /needs linkTlsCert and linkTlsKey/],
    [{ linkListen: anywhere, ...pair }, /does not know who connects: name the CA/],
    [{ linkListen: '127.0.0.1:0', ...pair }, /need linkListen with tls:/],
    [{ linkListen: 'tls://127.0.0.1:65535', ...pair, socketThreads: 2 }, /there is no port 65537/],
  ];
  for (const [options, message] of wrong)
    t.throws(() => accessOf(options), { code: 'MILLRACE_CONFIG', message }, JSON.stringify(options));
  t.end();
});
