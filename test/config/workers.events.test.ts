// Promise: a worker's event endpoints and ranks come from itself or from the process-wide settings, and every wrong one is named.
import t from 'tap';
import { loadConfig } from '#millrace/config.js';
import { ConfigError } from '#millrace/errors.js';
import { endpointOf } from '#millrace/worker-config.js';

const names = { policies: ['random'], tokenizers: [] };
const load = (options: Record<string, unknown>) => loadConfig(names, { options });

t.test('what a worker does not say is as the process-wide setting', async t => {
  const { workers } = load({
    kvEvents: 'tcp://*:5557',
    kvEventsReplay: 'tcp://*:5558',
    kvEventsTopic: 'kv@',
    workers: [
      'http://a:1',
      { url: 'http://[::1]:2/', kvEvents: 'tcp://relay:7000', kvEventsTopic: '' },
      { url: 'http://c:3', kvEvents: null },
      { url: 'http://d:4', kvEventsReplay: null, dpRanks: 4 },
    ],
  });
  const [a, b, c, d] = workers;
  t.same(a, {
    url: 'http://a:1',
    engine: 'auto',
    kvEvents: 'tcp://a:5557',
    kvEventsReplay: 'tcp://a:5558',
    kvEventsTopic: 'kv@',
    dpRanks: 1,
  });
  t.match(b, { kvEvents: 'tcp://relay:7000', kvEventsReplay: 'tcp://[::1]:5558', kvEventsTopic: '' });
  t.match(c, { kvEvents: null, kvEventsReplay: null });
  t.match(d, { kvEvents: 'tcp://d:5557', kvEventsReplay: null, dpRanks: 4 });
  t.same(load({ workers: ['http://a:1'] }).workers[0], {
    ...a,
    kvEvents: 'auto',
    kvEventsReplay: null,
    kvEventsTopic: '',
  });
});

t.test('the workers of a model inherit too, and YAML and the environment say the same', async t => {
  const text = 'kvEvents: "tcp://*:5557"\nmodels: {m: {workers: [{url: "http://a:1", dpRanks: 2}]}}';
  const env = { MILLRACE_KV_EVENTS: 'tcp://*:6000' };
  t.match(loadConfig(names, { file: { name: 'm.yaml', text } }).models.m?.workers, [
    { url: 'http://a:1', kvEvents: 'tcp://a:5557', dpRanks: 2 },
  ]);
  t.match(loadConfig(names, { file: { name: 'm.yaml', text }, env }).models.m?.workers, [
    { kvEvents: 'tcp://a:6000' },
  ]);
});

t.test('the endpoint of a rank: its port is that of rank 0 and the rank', async t => {
  t.equal(endpointOf('tcp://h:5557', 'http://a:1', 3), 'tcp://h:5560');
  t.equal(endpointOf('tcp://*:5557', 'http://[::1]:1', 1), 'tcp://[::1]:5558');
  t.equal(endpointOf('bind:tcp://*:5557', 'http://a:1', 1), 'bind:tcp://*:5558', 'we bind on all addresses');
  t.equal(endpointOf('ipc:///run/kv', 'http://a:1', 0), 'ipc:///run/kv');
  t.equal(endpointOf(null, 'http://a:1', 0), null);
});

const wrong: [string, Record<string, unknown>, RegExp][] = [
  [
    'an endpoint that is none',
    { kvEvents: 'http://a:1' },
    /kvEvents \(option\) is "http:\/\/a:1"; allowed: auto, off, tcp:/,
  ],
  ['a port out of range', { kvEvents: 'tcp://a:70000' }, /kvEvents .*"tcp:\/\/a:70000"/],
  ['a replay that is bound', { kvEventsReplay: 'bind:tcp://a:1' }, /kvEventsReplay .*leave out bind:/],
  ['a topic that is no text', { kvEventsTopic: 7 }, /kvEventsTopic .* is 7; allowed: a text/],
  [
    'an endpoint of one worker',
    { workers: [{ url: 'http://a:1', kvEvents: 5 }] },
    /of http:\/\/a:1, kvEvents is 5/,
  ],
  ['a key of a worker', { workers: [{ url: 'http://a:1', kvEvent: '' }] }, /"kvEvent".*"kvEvents"/],
  ['a worker without a URL', { workers: [{ kvEvents: 'tcp://a:1' }] }, /workers .*: url is undefined/],
  [
    'ranks out of range',
    { workers: [{ url: 'http://a:1', dpRanks: 0 }] },
    /dpRanks is 0; allowed: .* 1 to 256/,
  ],
  [
    'ranks without ports',
    { workers: [{ url: 'http://a:1', dpRanks: 2, kvEvents: 'ipc:///x' }] },
    /kvEvents of http:\/\/a:1 .*dpRanks above 1 .* tcp/,
  ],
  [
    'ranks over the last port',
    { workers: [{ url: 'http://a:1', dpRanks: 3, kvEvents: 'tcp://a:65534' }] },
    /no room for 3 ports from 65534/,
  ],
  [
    'two workers at one endpoint',
    { kvEvents: 'tcp://127.0.0.1:5557', workers: ['http://a:1', 'http://b:1'] },
    /http:\/\/b:1 and http:\/\/a:1 would both publish at tcp:\/\/127.0.0.1:5557/,
  ],
  [
    'ranks that meet those of another worker',
    {
      kvEvents: 'tcp://*:5557',
      workers: [
        { url: 'http://a:1', dpRanks: 2 },
        { url: 'http://b:1', kvEvents: 'tcp://a:5558' },
      ],
    },
    /would both publish at tcp:\/\/a:5558/,
  ],
  [
    'a worker that two models name differently',
    { models: { m: { workers: ['http://a:1'] }, n: { workers: [{ url: 'http://a:1', dpRanks: 2 }] } } },
    /http:\/\/a:1 is named twice with different settings/,
  ],
  ['an index without room', { limits: { indexBytes: 1 << 20 } }, /indexBytes .* 64 × indexPredictionsMax/],
  [
    'a queue that takes no batch',
    { limits: { eventQueueBytesMax: 1 << 20 } },
    /eventQueueBytesMax .* eventBatchBytesMax/,
  ],
];
for (const [what, options, message] of wrong) {
  t.test(`refused: ${what}`, async t => {
    t.ok(t.throws(() => load(options), { message }) instanceof ConfigError);
  });
}

t.test('two workers may share an endpoint under topics of their own', async t => {
  const shared = { kvEvents: 'tcp://relay:5557' };
  const workers = [
    { url: 'http://a:1', kvEventsTopic: 'a', ...shared },
    { url: 'http://b:1', kvEventsTopic: 'b', ...shared },
  ];
  t.equal(load({ workers }).workers.length, 2);
});
