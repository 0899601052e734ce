/** Promise: each engine is told of adapters and sleep in its own words, and its answers are taken for what they mean. */
import t from 'tap';
import { createAdapters } from '#millrace/engines/adapters.js';
import { type ControlSample, engineControlSuite } from './engine-adapter.js';

const adapters = createAdapters([]);
const SQL = { name: 'sql', path: '/loras/sql' };
const NOT_FOUND = [404, '{"detail":"Not Found"}'] as const;
const OK = [200, ''] as const;

const load: ControlSample['run'] = (control, ask) => control.loadAdapter(ask, SQL);
const unload: ControlSample['run'] = (control, ask) => control.unloadAdapter(ask, 'sql');
const sleep =
  (level: 1 | 2): ControlSample['run'] =>
  (control, ask) =>
    control.sleep(ask, level);
const wake =
  (level: 1 | 2): ControlSample['run'] =>
  (control, ask) =>
    control.wake(ask, level);

/** What vLLM 0.32.0 answered. */
const vllmError = (status: number, message: string, type: string) =>
  [status, JSON.stringify({ error: { message, type, param: null, code: status } })] as const;
const VLLM_LOAD = ['POST', '/v1/load_lora_adapter', { lora_name: 'sql', lora_path: '/loras/sql' }] as const;
const VLLM_UNLOAD = ['POST', '/v1/unload_lora_adapter', { lora_name: 'sql' }] as const;

t.test('vLLM', t => {
  const loaded =
    "The lora adapter 'sql' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.";
  const missing = 'Loading lora sql failed: No adapter found for /loras/sql';
  engineControlSuite(t, adapters.get('vllm')!, [
    { name: 'load', run: load, answers: [OK], asked: [VLLM_LOAD], result: { kind: 'done' } },
    {
      name: 'load again',
      run: load,
      answers: [vllmError(400, loaded, 'InvalidUserInput')],
      asked: [VLLM_LOAD],
      result: { kind: 'already' },
    },
    {
      name: 'load what is not there',
      run: load,
      answers: [vllmError(404, missing, 'NotFoundError')],
      asked: [VLLM_LOAD],
      result: { kind: 'refused', message: missing },
    },
    {
      name: 'load without the switches',
      run: load,
      answers: [NOT_FOUND],
      asked: [VLLM_LOAD],
      result: { kind: 'unsupported', message: /--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING/ },
    },
    { name: 'unload', run: unload, answers: [OK], asked: [VLLM_UNLOAD], result: { kind: 'done' } },
    {
      name: 'unload again',
      run: unload,
      answers: [vllmError(404, "The lora adapter 'sql' cannot be found.", 'NotFoundError')],
      asked: [VLLM_UNLOAD],
      result: { kind: 'already' },
    },
    {
      name: 'sleep',
      run: sleep(2),
      answers: [[200, '{"status":"sleeping","level":2}']],
      asked: [['POST', '/sleep?level=2&mode=wait']],
      result: { kind: 'done' },
    },
    {
      name: 'sleep without the switches',
      run: sleep(1),
      answers: [NOT_FOUND],
      asked: [['POST', '/sleep?level=1&mode=wait']],
      result: { kind: 'unsupported', message: /VLLM_SERVER_DEV_MODE/ },
    },
    {
      name: 'wake',
      run: wake(1),
      answers: [[200, '{"status":"awake","tags":null}']],
      asked: [['POST', '/wake_up']],
      result: { kind: 'done' },
    },
    {
      name: 'wake from level 2: the weights are read before there is a cache',
      run: wake(2),
      answers: [OK, OK, OK],
      asked: [
        ['POST', '/wake_up?tags=weights'],
        ['POST', '/collective_rpc', { method: 'reload_weights' }],
        ['POST', '/wake_up?tags=kv_cache'],
      ],
      result: { kind: 'done' },
    },
    {
      name: 'wake that fails on the way',
      run: wake(2),
      answers: [OK, [500, 'Traceback']],
      asked: [
        ['POST', '/wake_up?tags=weights'],
        ['POST', '/collective_rpc', { method: 'reload_weights' }],
      ],
      result: { kind: 'refused', message: 'Traceback' },
    },
  ]);
  for (const [status, body, says] of [
    [200, '{"is_sleeping":true}', true],
    [200, '{"is_sleeping":false}', false],
    [...NOT_FOUND, null],
  ] as const)
    engineControlSuite(t, adapters.get('vllm')!, [
      {
        name: `asleep: ${says}`,
        run: async (control, ask) => ({ says: await control.isSleeping(ask) }),
        answers: [[status, body]],
        asked: [['GET', '/is_sleeping']],
        result: { says },
      },
    ]);
  t.end();
});

const SGLANG_LOAD = ['POST', '/load_lora_adapter', { lora_name: 'sql', lora_path: '/loras/sql' }] as const;
const INFO = ['GET', '/get_server_info'] as const;
const lorasSay = (error_message: string) =>
  [400, JSON.stringify({ success: false, error_message, loaded_adapters: null })] as const;
const infoOf = (more: object) =>
  [200, JSON.stringify({ model_path: '/m', enable_memory_saver: true, ...more })] as const;
const release = (...tags: string[]) => ['POST', '/release_memory_occupation', { tags }] as const;
const resume = (...tags: string[]) => ['POST', '/resume_memory_occupation', { tags }] as const;

t.test('SGLang', t => {
  const off = 'LoRA is not enabled. Please set `--enable-lora` to enable LoRA.';
  engineControlSuite(t, adapters.get('sglang')!, [
    {
      name: 'load',
      run: load,
      answers: [[200, '{"success":true}']],
      asked: [SGLANG_LOAD],
      result: { kind: 'done' },
    },
    {
      name: 'load again',
      run: load,
      answers: [lorasSay("LoRA with name sql already exists. Loaded LoRAs: dict_keys(['sql'])")],
      asked: [SGLANG_LOAD],
      result: { kind: 'already' },
    },
    {
      name: 'load without the switch',
      run: load,
      answers: [lorasSay(off)],
      asked: [SGLANG_LOAD],
      result: { kind: 'refused', message: off },
    },
    {
      name: 'a name that its routes would cut',
      run: (control, ask) => control.loadAdapter(ask, { name: 'a:b', path: '/x' }),
      answers: [],
      asked: [],
      result: { kind: 'refused', message: /colon/ },
    },
    {
      name: 'unload again',
      run: unload,
      answers: [lorasSay('LoRA with name sql does not exist. Loaded LoRAs: dict_keys([])')],
      asked: [['POST', '/unload_lora_adapter', { lora_name: 'sql' }]],
      result: { kind: 'already' },
    },
    {
      name: 'sleep keeps weights that nobody has a copy of',
      run: sleep(1),
      answers: [infoOf({}), [200, 'null']],
      asked: [INFO, release('kv_cache')],
      result: { kind: 'done' },
    },
    {
      name: 'sleep with weights in host memory',
      run: sleep(1),
      answers: [infoOf({ enable_weights_cpu_backup: true }), [200, 'null']],
      asked: [INFO, release('kv_cache', 'weights')],
      result: { kind: 'done' },
    },
    {
      name: 'sleep of a server that would only empty its cache',
      run: sleep(1),
      answers: [infoOf({ enable_memory_saver: false })],
      asked: [INFO],
      result: { kind: 'unsupported', message: /--enable-memory-saver/ },
    },
    {
      name: 'wake from level 2: the weights are read from the disk',
      run: wake(2),
      answers: [infoOf({}), OK, OK, OK],
      asked: [
        INFO,
        resume('weights'),
        ['POST', '/update_weights_from_disk', { model_path: '/m' }],
        resume('kv_cache'),
      ],
      result: { kind: 'done' },
    },
    {
      name: 'wake from level 1',
      run: wake(1),
      answers: [NOT_FOUND, infoOf({}), [400, '{"error":{"message":"bad tag"}}']],
      asked: [INFO, ['GET', '/server_info'], resume('kv_cache')],
      result: { kind: 'refused', message: 'bad tag' },
    },
    {
      name: 'it cannot say that it sleeps, and its health route is not asked',
      run: async (control, ask) => ({ says: await control.isSleeping(ask) }),
      answers: [OK],
      asked: [['GET', '/v1/models']],
      result: { says: null },
    },
  ]);
  t.end();
});

t.test('TensorRT-LLM', t => {
  const adapter = adapters.get('trtllm')!;
  t.equal(adapter.control.holdsAdapters, false);
  engineControlSuite(t, adapter, [
    { name: 'load', run: load, answers: [], asked: [], result: { kind: 'done' } },
    { name: 'unload', run: unload, answers: [], asked: [], result: { kind: 'done' } },
    { name: 'sleep', run: sleep(1), answers: [], asked: [], result: { kind: 'unsupported' } },
    { name: 'wake', run: wake(1), answers: [], asked: [], result: { kind: 'unsupported' } },
  ]);
  t.end();
});
