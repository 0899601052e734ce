// Promise: settings come from file, environment and options in that order of precedence, and every wrong one is named.
import { resolve } from 'node:path';
import t from 'tap';
import { loadConfig } from '#millrace/config.js';
import { ConfigError } from '#millrace/errors.js';
import { DEFAULT_LIMITS, LIMITS } from '#millrace/limits.js';

const names = { policies: ['round-robin', 'random'], tokenizers: ['chatml-cl100k'] };
const load = (sources: Parameters<typeof loadConfig>[1]) => loadConfig(names, sources);

t.test('precedence', async t => {
  const file = {
    name: 'm.yaml',
    text: 'port: 1\nhost: file\npolicy: random\nlimits: {requestsMax: 7, choicesMax: 3}',
  };
  const env = { MILLRACE_PORT: '2', MILLRACE_HOST: 'env', MILLRACE_LIMITS: 'choicesMax=4', OTHER: 'x' };
  const config = load({ file, env, options: { port: 3 } });
  t.equal(config.port, 3);
  t.equal(config.host, 'env');
  t.equal(config.policy, 'random');
  t.equal(config.limits.requestsMax, 7);
  t.equal(config.limits.choicesMax, 4);
  t.equal(config.limits.bodyBytesMax, DEFAULT_LIMITS.bodyBytesMax);
  t.ok(Object.isFrozen(config) && Object.isFrozen(config.limits) && Object.isFrozen(config.models));
});

t.test('models inherit what they do not set', async t => {
  const text =
    'policy: random\ntokenizer: chatml-cl100k\nmodels: {a: {}, b: {policy: round-robin, contextLength: 5}}';
  const { models } = load({ file: { name: 'm.yaml', text } });
  t.match(models.a, { policy: 'random', tokenizer: 'chatml-cl100k', contextLength: null, workers: [] });
  t.match(models.b, { policy: 'round-robin', contextLength: 5 });
});

t.test('lists of workers', async t => {
  const urls = (sources: Parameters<typeof load>[0]): string[] => load(sources).workers.map(({ url }) => url);
  t.same(urls({ env: { MILLRACE_WORKERS: 'http://a:1,http://b:2' } }), ['http://a:1', 'http://b:2']);
  t.same(urls({ options: { workers: ['http://a:1/'] } }), ['http://a:1']);
});

t.test('every limit takes its own bounds and nothing beyond them', async t => {
  const { bodyBytesMax, poolHeapBytesMax, ringQueueBytesMax, eventBatchBytesMax, eventQueueBytesMax } =
    LIMITS;
  // Those that have to fit each other.
  const roomy = { poolHeapBytesMax: poolHeapBytesMax.max, ringQueueBytesMax: ringQueueBytesMax.max };
  const small = {
    bodyBytesMax: bodyBytesMax.min,
    indexPredictionsMax: LIMITS.indexPredictionsMax.min,
    eventBatchBytesMax: eventBatchBytesMax.min,
    eventQueueBytesMax: eventQueueBytesMax.max,
  };
  for (const [name, { min, max }] of Object.entries(LIMITS)) {
    const others = name === 'bodyBytesMax' ? roomy : small;
    for (const value of [min, max])
      t.ok(load({ options: { limits: { ...others, [name]: value } } }), `${name}=${value}`);
    for (const value of [min - 1, max + 1, Number.NaN, 1.5]) {
      t.throws(() => load({ options: { limits: { [name]: value } } }), { message: new RegExp(name) });
    }
  }
});

const wrong: [string, Parameters<typeof load>[0], RegExp][] = [
  [
    'unknown key in a file',
    { file: { name: 'm.yaml', text: 'prot: 1' } },
    /m\.yaml, line 1: .*"prot".*"port"/,
  ],
  ['unknown variable', { env: { MILLRACE_PROT: '1' } }, /"MILLRACE_PROT".*"MILLRACE_PORT"/],
  ['unknown option', { options: { polcy: 'random' } }, /"polcy".*"policy"/],
  ['unknown limit', { options: { limits: ['requestMax=1'] } }, /requestMax.*requestsMax/],
  ['port out of range', { options: { port: '65536' } }, /port.*"65536".*0 to 65535/],
  ['port that is no number', { env: { MILLRACE_PORT: 'http' } }, /MILLRACE_PORT is "http"/],
  ['unknown policy', { options: { policy: 'rand' } }, /"rand".*round-robin, random.*did you mean random/],
  ['worker with a path', { options: { workers: ['http://a:1/v1'] } }, /http:\/\/a:1\/v1/],
  ['worker named twice', { options: { workers: ['http://a:1', 'http://a:1/'] } }, /twice/],
  ['file that is no YAML', { file: { name: 'm.yaml', text: 'a: [' } }, /m\.yaml is not valid YAML/],
  ['file that is a list', { file: { name: 'm.yaml', text: '- 1' } }, /m\.yaml must hold a map/],
  ['unknown key of a model', { options: { models: { a: { polcy: 'x' } } } }, /models\.a.*"polcy".*"policy"/],
  [
    'context length of a model',
    { options: { models: { a: { contextLength: 0 } } } },
    /models\.a\.contextLength is 0/,
  ],
  [
    'hedge of a model',
    { options: { models: { a: { hedgeAfterMs: -1 } } } },
    /models\.a\.hedgeAfterMs is -1; allowed: an integer from 0 to/,
  ],
];
for (const [what, sources, message] of wrong) {
  t.test(`refused: ${what}`, async t => {
    const error = t.throws(() => load(sources), { message });
    t.ok(error instanceof ConfigError);
  });
}

t.test('a secret comes from the environment or the file, and is in no message', t => {
  const secret = 'short-secret';
  const long = 'long-enough-secret';
  t.equal(load({ env: { MILLRACE_ADMIN_TOKEN: long } }).adminToken, long);
  t.equal(load({ file: { name: 'm.yaml', text: `adminToken: ${long}` } }).adminToken, long);
  t.equal(load({}).adminToken, null);
  for (const wrong of [secret, `${long} `, `${long}ü`, 'x'.repeat(5000)]) {
    t.throws(() => load({ env: { MILLRACE_ADMIN_TOKEN: wrong } }), {
      message: /^MILLRACE_ADMIN_TOKEN is not shown; allowed: 16 to 4096/,
    });
  }
  t.end();
});

t.test('a worker names its engine; events are asked for unless they are off', t => {
  const workers = ['http://a:1', { url: 'http://b:1', engine: 'sglang', kvEvents: 'off' }];
  t.match(load({ options: { workers } }).workers, [
    { engine: 'auto', kvEvents: 'auto' },
    { engine: 'sglang', kvEvents: null },
  ]);
  t.match(load({ options: { workers, kvEvents: 'off' } }).workers[0], { kvEvents: null });
  t.throws(() => load({ options: { workers: [{ url: 'http://a:1', engine: 'v LLM' }] } }), {
    message:
      /of http:\/\/a:1, engine is "v LLM"; allowed: auto, vllm, sglang, trtllm, or the engine of an extension/,
  });
  t.equal(load({ options: { workers: [{ url: 'http://a:1', engine: 'tgi' }] } }).workers[0]!.engine, 'tgi');
  t.end();
});

t.test('modules are relative to the file that names them, else to the working directory', t => {
  const extensionsOf = (sources: Parameters<typeof load>[0]) => load(sources).extensions;
  const file = (text: string) => ({ file: { name: '/etc/millrace/m.yaml', text: `extensions: ${text}` } });
  t.same(extensionsOf({}), []);
  t.same(extensionsOf(file('[./a.js, ../b/c.js, /d.js]')), ['/etc/millrace/a.js', '/etc/b/c.js', '/d.js']);
  t.same(extensionsOf(file('./a.js')), ['/etc/millrace/a.js']);
  t.same(extensionsOf({ env: { MILLRACE_EXTENSIONS: './a.js,./b.js' } }), [resolve('a.js'), resolve('b.js')]);
  t.same(extensionsOf({ options: { extensions: ['file:///x/a.js'] } }), ['/x/a.js']);
  t.match(extensionsOf({ options: { extensions: ['tap'] } }), [/node_modules\/tap\/.+\.js$/]);
  for (const [extensions, message] of [
    [['./a.js', '././a.js'], /extensions \(option\) names \S+a\.js twice/],
    [['none-of-this-name'], /is "none-of-this-name", and there is no such package from \S+ \(a path begins/],
    [['file://host/a.js'], /not the URL of a file here/],
    [[7], /extensions \(option\) is 7; allowed: a text/],
    [Array.from({ length: 65 }, (_, index) => `./${index}.js`), /has 65 entries; allowed: at most 64/],
  ] as const)
    t.throws(() => load({ options: { extensions } }), { code: 'MILLRACE_CONFIG', message });
  t.end();
});
