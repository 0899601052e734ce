// Promise: wrong usage is explained in one line and exits 2; help says what there is; a taken port is named.
import { createServer } from 'node:net';
import t from 'tap';
import { command as serve } from '#millrace/cli/serve.js';
import { ConfigError } from '#millrace/errors.js';
import { LIMITS } from '#millrace/limits.js';
import { runMillrace } from './serve-process.js';

const WORKER = ['--worker', 'http://127.0.0.1:9'];

t.test('wrong flags and files: an error of one line that says what is allowed', async t => {
  const dir = t.testdir({
    'unknown.yaml': 'polcy: random\n',
    'broken.yaml': 'port: [1\nhost: "x\n',
    'list.yaml': '- port\n',
    'model.yaml': 'models:\n  m:\n    tokeniser: chatml-cl100k\n',
    'limit.yaml': 'limits:\n  requestMax: 5\n',
  });
  const cases: [args: string[], wanted: RegExp][] = [
    [['--port'], /--port/],
    [['--port', '--json'], /--port.* ambiguous/],
    [['--json=yes'], /--json/],
    [['extra'], /extra/],
    [['--port', '65536'], /port .*"65536".* 0 to 65535/],
    [['--worker', 'ftp://x'], /workers? .*ftp:\/\/x.* http:\/\/host:port/],
    [[...WORKER, ...WORKER], /http:\/\/127\.0\.0\.1:9 twice/],
    [['--policy', 'randon'], /policy .*"randon".*did you mean random\?/],
    [['--tokenizer', 'chatml'], /tokenizer .*"chatml".*did you mean chatml-cl100k\?/],
    [['--limit', 'requestMax=3'], /no limit "requestMax"; did you mean requestsMax\?/],
    [['--limit', 'requestsMax=0'], /requestsMax.* 1 to 1000000/],
    [['--limit', 'workersMax=1', ...WORKER, '--worker', 'http://127.0.0.1:10'], /more than 1 workers/],
    [['--config', `${dir}/absent.yaml`], /--config .*absent\.yaml cannot be read: ENOENT/],
    [['--config', dir], /--config .* cannot be read: EISDIR/],
    [['--config', `${dir}/broken.yaml`], /broken\.yaml is not valid YAML: .* line \d+, column \d+$/],
    [['--config', `${dir}/list.yaml`], /list\.yaml must hold a map/],
    [['--config', `${dir}/model.yaml`], /models\.m.* "tokeniser"; did you mean "tokenizer"\?/],
    [['--config', `${dir}/limit.yaml`], /"requestMax"; did you mean requestsMax\?/],
  ];
  for (const [args, wanted] of cases) {
    const error: unknown = await serve.run(args).catch(thrown => thrown);
    t.ok(error instanceof ConfigError, `refused: ${args.join(' ')}`);
    t.match((error as Error).message, wanted);
    t.notMatch((error as Error).message, '\n', 'one line');
  }
});

t.test('the binary prints that line on standard error and exits 2', async t => {
  const dir = t.testdir({ 'unknown.yaml': 'polcy: random\n' });
  const cases: [args: string[], wanted: RegExp, env?: Record<string, string>][] = [
    [['serv'], /no command "serv"; did you mean "serve"\?/],
    [['serve', '--prot', '1'], /no flag --prot; did you mean --port\?/],
    [['serve', '--config', `${dir}/unknown.yaml`], /unknown\.yaml.* "polcy"; did you mean "policy"\?/],
    [['serve'], /"MILLRACE_PROT"; did you mean "MILLRACE_PORT"\?/, { MILLRACE_PROT: '1' }],
    [['serve'], /MILLRACE_PORT is "http".* 0 to 65535/, { MILLRACE_PORT: 'http' }],
    // Refused only after its mock engines have started: they must end with it.
    [['serve', '--mock-workers', '2', '--limit', 'workersMax=1'], /more than 1 workers/],
    [['mock', '--sped', '2'], /no flag --sped; did you mean --speed\?/],
  ];
  for (const [args, wanted, env] of cases) {
    const { code, stdout, stderr } = await runMillrace(t, args, env);
    t.match({ code, stdout, stderr }, { code: 2, stdout: '', stderr: wanted }, args.join(' '));
    t.match(stderr, /^(millrace: no --worker given[^\n]*\n)?millrace[^\n]*\n$/, 'one line, no stack');
  }
});

t.test('help names every command, flag and limit', async t => {
  t.equal((await runMillrace(t, [])).code, 2);
  t.match(await runMillrace(t, ['--help']), { code: 0, stderr: '', stdout: /serve .*\n(.*\n)*.*mock / });
  const help = await runMillrace(t, ['serve', '--help']);
  t.match(help, { code: 0, stderr: '' });
  for (const flag of ['worker', 'port', 'policy', 'tokenizer', 'http-server', 'limit', 'config', 'json'])
    t.match(help.stdout, new RegExp(`--${flag} `), flag);
  const limits = await runMillrace(t, ['serve', '--help-limits']);
  t.match(limits, { code: 0, stderr: '' });
  for (const [name, { unit, min, max, default: preset }] of Object.entries(LIMITS))
    t.match(limits.stdout, new RegExp(`${name} +${preset} ${unit} +${min}\\.\\.${max} `), name);
});

t.test('a port that is taken is named, and no mock engine stays', async t => {
  const taken = createServer().listen(0, '127.0.0.1');
  t.teardown(() => taken.close());
  await new Promise(resolve => taken.once('listening', resolve));
  const { port } = taken.address() as { port: number };
  for (const server of ['uws', 'node']) {
    const args = ['serve', '--port', String(port), '--http-server', server, '--mock-workers', '2'];
    // Resolves only when its mock engines are gone too.
    const { code, stdout, stderr } = await runMillrace(t, args);
    t.match({ code, stdout }, { code: 2, stdout: '' });
    t.match(stderr, /starting 2 mock engines/);
    t.match(stderr, new RegExp(`127\\.0\\.0\\.1:${port}`));
    t.notMatch(stderr, /\n\s+at /, 'no stack');
  }
});
