/** Promise: a module that is no adapter is refused with an error that names it and what is wrong; its mistakes stay its own. */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { checkEngines, createAdapters } from '#millrace/engines/adapters.js';
import { EXTENSION_LOAD_MS, loadExtensions } from '#millrace/engines/extensions.js';
import { createFrameScanner } from '#millrace/engines/frame-scanner.js';
import { ManualClock } from '#millrace/runtime/clock.js';
import { decode, makeInput, makeRequest } from '../contract/engine-adapter.js';

const FIELDS = {
  engine: "'tgi'",
  hasOpenAiFrames: 'true',
  healthPath: "'/health'",
  metricsPath: "'/metrics'",
  probe: `async () => ({ engine: 'tgi', version: null, models: [{ id: 'm', contextLength: null }], blockSize: null,
    totalBlocks: null, returnsTokenIds: true, answerModes: ['token'], dpRanks: null, events: null, notices: [] })`,
  tokenize: 'async () => null',
  sampleOf: '() => null',
  parseMetrics: '() => ({})',
  tokenModeGap: '() => null',
  encode: '() => ({})',
  abortCall: '() => null',
  canary: '() => ({})',
  openStream: 'limits => tools.openSse(limits)',
};

const moduleOf = (
  changes: Partial<Record<keyof typeof FIELDS | 'modelOwner' | 'control', string>>,
): string => {
  const fields = Object.entries({ ...FIELDS, ...changes }).map(([name, value]) => `${name}: ${value}`);
  return `export const createEngineAdapter = tools => ({ ${fields.join(',\n')} });`;
};

const load = async (t: Test, ...texts: string[]) => {
  const files = Object.fromEntries(texts.map((text, index) => [`${index}.mjs`, text]));
  const folder = t.testdir(files);
  return loadExtensions(
    texts.map((_, index) => join(folder, `${index}.mjs`)),
    new ManualClock(),
  );
};
const make = async (t: Test, ...texts: string[]) =>
  createAdapters(await load(t, ...texts), createFrameScanner(null));

t.test('modules that cannot be loaded', async t => {
  const cases: [string, RegExp][] = [
    ['export const a = ;', /^extensions: \S+0\.mjs cannot be loaded: Unexpected token/],
    ["import 'no-such-package';", /0\.mjs cannot be loaded: Cannot find package 'no-such-package'/],
    ["throw new Error('no licence');", /0\.mjs cannot be loaded: no licence/],
    ['export default 1;', /0\.mjs exports createEngineAdapter as nothing; allowed: a function/],
    ['export const createEngineAdapter = {};', /createEngineAdapter as \{\}; allowed: a function/],
  ];
  for (const [text, message] of cases)
    await t.test(text, async t => t.rejects(load(t, text), { code: 'MILLRACE_CONFIG', message }));
  const missing = join(t.testdirName, 'none.js');
  await t.rejects(loadExtensions([missing], new ManualClock()), { message: /none\.js cannot be loaded: / });
});

t.test('one that never finishes loading', async t => {
  const clock = new ManualClock();
  const folder = t.testdir({ 'slow.mjs': 'await new Promise(() => {}); export {};' });
  const loading = loadExtensions([join(folder, 'slow.mjs')], clock);
  clock.advance(EXTENSION_LOAD_MS);
  await t.rejects(loading, { code: 'MILLRACE_CONFIG', message: /slow\.mjs has not loaded within 10000 ms/ });
});

t.test('adapters that are none', async t => {
  const cases: [string, RegExp][] = [
    [
      'export const createEngineAdapter = () => null;',
      /createEngineAdapter\(\) gave null; allowed: an object/,
    ],
    [
      "export const createEngineAdapter = () => { throw new Error('x'); };",
      /createEngineAdapter\(\) failed: x/,
    ],
    [moduleOf({ engine: "'auto'" }), /gave engine as "auto"; allowed: a name of a-z/],
    [moduleOf({ engine: "'a b'" }), /gave engine as "a b"; allowed/],
    [moduleOf({ modelOwner: '7' }), /gave modelOwner as 7; allowed: a text, or nothing/],
    [moduleOf({ hasOpenAiFrames: 'undefined' }), /gave hasOpenAiFrames as nothing; allowed: true or false/],
    [
      moduleOf({ healthPath: "'health'" }),
      /gave healthPath as "health"; allowed: a path that begins with \//,
    ],
    [
      moduleOf({ control: '{ holdsAdapters: true }' }),
      /gave control as \{"holdsAdapters":true\}; allowed: an object of/,
    ],
    [moduleOf({ metricsPath: '() => 1' }), /gave metricsPath as a function; allowed: a path/],
    ...[
      'probe',
      'tokenize',
      'sampleOf',
      'parseMetrics',
      'tokenModeGap',
      'encode',
      'abortCall',
      'canary',
      'openStream',
    ].map((name): [string, RegExp] => [
      moduleOf({ [name]: 'undefined' }),
      new RegExp(
        `^extensions: \\S+0\\.mjs createEngineAdapter\\(\\) gave ${name} as nothing; allowed: a function`,
      ),
    ]),
    [
      moduleOf({ engine: "'vllm'" }),
      /0\.mjs is for the engine "vllm", which there is already \(vllm, sglang, trtllm\)/,
    ],
  ];
  for (const [text, message] of cases)
    await t.test(String(message), async t => t.rejects(make(t, text), { code: 'MILLRACE_CONFIG', message }));
  await t.rejects(make(t, moduleOf({}), moduleOf({})), {
    message: /1\.mjs is for the engine "tgi", which there is/,
  });
});

t.test('an instance of a class, frozen', async t => {
  const members = Object.entries(FIELDS).map(([name, value]) => `${name} = ${value};`);
  const text = `class Adapter { #gap = 'n'; ${members.join(' ')} tokenModeGap() { return this.#gap; } }
export const createEngineAdapter = tools => Object.freeze(new Adapter());`.replace(
    'tokenModeGap = () => null;',
    '',
  );
  const adapter = (await make(t, text)).get('tgi')!;
  t.same([adapter.engine, adapter.healthPath, adapter.hasOpenAiFrames], ['tgi', '/health', true]);
  t.equal(adapter.tokenModeGap(makeRequest()), 'n');
});

t.test('an adapter without control calls says so', async t => {
  const { control } = (await make(t, moduleOf({}))).get('tgi')!;
  const ask = () => Promise.reject(new Error('nothing is asked'));
  const none = { kind: 'unsupported', message: 'the extension of this engine has no control calls' };
  t.same(await control.loadAdapter(ask, { name: 'a', path: '/a' }), none);
  t.same(await control.unloadAdapter(ask, 'a'), none);
  t.same([await control.sleep(ask, 1), await control.wake(ask, 1)], [none, none]);
  t.equal(await control.isSleeping(ask), null);
});

t.test('a worker of an engine that nobody knows', async t => {
  const adapters = await make(t, moduleOf({}));
  const worker = (engine: string) => [{ url: 'http://a:1', engine }];
  for (const engine of ['auto', 'vllm', 'tgi']) checkEngines(adapters, worker(engine));
  t.throws(() => checkEngines(adapters, worker('tgy')), {
    code: 'MILLRACE_CONFIG',
    message:
      /^engine of worker http:\/\/a:1 is "tgy"; allowed: auto, vllm, sglang, trtllm, tgi; an extension/,
  });
});

t.test('a probe that gives nonsense is the worker’s fault', async t => {
  const get = async () => ({ status: 200, body: '' });
  const facts = async (t: Test, more: string) => {
    const probe = `async () => ({ ...(await (${FIELDS.probe})()), ${more} })`;
    return (await make(t, moduleOf({ probe }))).get('tgi')!.probe(get, 'http://a:1');
  };
  t.match(await facts(t, 'version: "1"'), { engine: 'tgi', version: '1' });
  for (const [more, message] of [
    ['engine: "vllm"', /probe\(\) gave engine as "vllm"; allowed: "tgi"/],
    ['models: []', /gave models as \[\]; allowed: a list/],
    ['models: [{ id: "m", contextLength: 0 }]', /gave models as/],
    ['blockSize: 0.5', /gave blockSize as 0.5; allowed: an integer above 0, or null/],
    ['answerModes: ["text"]', /gave answerModes as \["text"\]; allowed: a list of token, relayIds, relay/],
    ['returnsTokenIds: undefined', /gave returnsTokenIds as nothing/],
    ['events: 1', /gave events as 1/],
    ['notices: "x"', /gave notices as "x"/],
  ] as const)
    await t.test(more, async t => t.rejects(facts(t, more), { code: 'MILLRACE_WORKER_PROTOCOL', message }));
});

t.test('what fails at work is told of once, by the name of the module', async t => {
  const warnings: string[] = [];
  const listen = (warning: Error) => warnings.push(warning.message);
  process.on('warning', listen);
  t.teardown(() => process.off('warning', listen));
  const text = moduleOf({
    encode: "() => { throw new Error('bug 1'); }",
    openStream: `limits => tools.openTranslated(limits, {
      chunk: frame => { if (frame.x === 2) throw new Error('bug 2'); return { choices: [{ index: 0, token_ids: [frame.x] }] }; },
      last: () => null })`,
  });
  const adapter = (await make(t, text)).get('tgi')!;
  for (let round = 0; round < 3; round++) t.throws(() => adapter.encode(makeInput()), /bug 1/);
  const frames = (ids: number[]) =>
    Buffer.from(`${ids.map(x => `data: {"x":${x}}\n\n`).join('')}data: [DONE]\n\n`);
  t.match(decode(adapter, [frames([1, 3])]), {
    events: [{ ids: [1] }, { ids: [3] }, { done: true }],
    fault: null,
    end: null,
  });
  t.match(decode(adapter, [frames([1, 2, 3])]), { events: [{ ids: [1] }], fault: 'malformed' });
  await new Promise(setImmediate);
  t.match(warnings, [/0\.mjs: encode failed: bug 1$/, /chunk\(\) of a translator failed: bug 2$/]);
  t.equal(warnings.length, 2);
});
