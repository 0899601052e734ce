// Promise: roles of workers and the rules of hand-overs are read with their defaults, and what is wrong is named with what is allowed.
import t from 'tap';
import { loadConfig } from '#millrace/config.js';
import { bootstrapOf } from '#millrace/disagg-config.js';

const names = { policies: ['ttft'], tokenizers: [] };
const load = (text: string) => loadConfig(names, { file: { name: 'm.yaml', text } });

t.test('workers and models', async t => {
  const config = load(`
workers:
  - {url: "http://a:1", role: prefill, bootstrap: "[fd00::7]:9000", kvEngineId: e-1, kvInfoEndpoint: "tcp://a:5"}
  - {url: "http://b:1", role: decode}
  - http://c:1
models:
  m: {disaggregation: {protocol: mooncake, policy: isl-bounding, effIslMax: 4096, whenPrefillFull: shed}}
  plain:
`);
  t.match(config.workers, [
    { role: 'prefill', bootstrap: '[fd00::7]:9000', kvEngineId: 'e-1', kvInfoEndpoint: 'tcp://a:5' },
    { role: 'decode', bootstrap: null, kvEngineId: null, kvInfoEndpoint: null },
    { role: 'both' },
  ]);
  t.same(bootstrapOf('[fd00::7]:9000', 'http://a:1'), { host: 'fd00::7', port: 9000 });
  t.same(bootstrapOf('p:9000', 'http://a:1'), { host: 'p', port: 9000 });
  t.same(bootstrapOf(null, 'http://[::1]:1'), { host: '::1', port: 8998 });
  const { m, plain } = config.models;
  t.same(m!.disaggregation, {
    ...plain!.disaggregation,
    protocol: 'mooncake',
    policy: 'isl-bounding',
    effIslMax: 4096,
    whenPrefillFull: 'shed',
  });
  t.match(plain!.disaggregation, {
    protocol: 'auto',
    policy: 'cost',
    effIslMax: 2048,
    effIslRatioMax: 0.7,
    whenPrefillFull: 'local',
    whenNoPrefill: 'local',
  });
});

t.test('mock workers by role', async t => {
  t.equal(load('mockWorkers: 3').mockWorkers, 3);
  t.same(load('mockWorkers: {prefill: 2, decode: 1}').mockWorkers, { prefill: 2, decode: 1, both: 0 });
});

t.test('what is wrong', async t => {
  const wrong: Readonly<Record<string, RegExp>> = {
    'workers: [{url: "http://a:1", role: prefil}]': /role is "prefil"; allowed: prefill, decode, both/,
    'workers: [{url: "http://a:1", role: prefill}]': /workers are all for prefill/,
    'workers: ["http://b:1"]\nmodels: {m: {workers: [{url: "http://a:1", bootstrap: "a"}]}}':
      /bootstrap is "a"; allowed: host:port/,
    'workers: [{url: "http://a:1", kvEngineId: ""}]': /kvEngineId is ""; allowed: a text of 1 to/,
    'models: {m: {disaggregation: {protcol: nixl}}}':
      /there is no setting "protcol"; did you mean "protocol"/,
    'models: {m: {disaggregation: {protocol: nccl}}}': /protocol is "nccl"; allowed: auto, nixl, mooncake/,
    'models: {m: {disaggregation: {effIslRatioMax: 2}}}':
      /effIslRatioMax is 2; allowed: a number from 0 to 1/,
    'models: {m: {disaggregation: {prefillQueueTokensMax: 0.5}}}': /allowed: an integer from 1 to/,
    'models: {m: {disaggregation: [1]}}': /disaggregation must be a map/,
    'mockWorkers: {prefill: 2}': /no worker that answers/,
    'mockWorkers: {prefil: 2}': /has "prefil"; allowed: prefill, decode, both/,
  };
  for (const [text, message] of Object.entries(wrong)) {
    t.throws(() => load(text));
    t.throws(() => load(text), { message });
  }
});
