/** Prefill on one mock engine and decode on another, as a router does it over vLLM's routes; for tests of the hand-over. */
import type { Test } from 'tap';
import { LocalEngines } from '#millrace/simulate/disagg/local-carrier.js';
import type { DisaggOptions } from '#millrace/simulate/disagg/open-connector.js';
import {
  loadMockTokenizer,
  type MockEngine,
  type MockEngineOptions,
  startMockEngine,
} from '#millrace/simulate/mock-engine.js';
import { needs } from '../transfer/two-agents.js';
import { type Json, postJson } from './http-probe.js';

const tokenizer = await loadMockTokenizer();
const BASE = { tokenizer, speed: 'unlimited', numGpuBlocks: 64, blockSize: 16, tiny: true } as const;

/** Starts an engine that the test closes. */
export async function startTiny(t: Test, more: Partial<MockEngineOptions> = {}): Promise<MockEngine> {
  const engine = await startMockEngine({ ...BASE, ...more });
  t.teardown(() => engine.close());
  return engine;
}

/** Ways from engine to engine; the last two are of the transfer engine. */
export type CarrierName = 'local' | 'http' | 'shm' | 'tcp';

/** Options of a test of a carrier, which may need what this machine does not have. */
export const needsOf = (carrier: CarrierName): { skip?: string } =>
  carrier === 'local' || carrier === 'http' ? {} : needs(carrier);

/** What makes an engine use a carrier. */
export function disaggOf(carrier: CarrierName): DisaggOptions {
  if (carrier === 'http') return {};
  return carrier === 'local' ? { engines: new LocalEngines() } : { transfer: { transports: [carrier] } };
}

/** Two engines with a connector: without sockets between them, over their side channels, or by the transfer engine. */
export async function startPair(
  t: Test,
  carrier: CarrierName,
  more: Partial<MockEngineOptions> = {},
): Promise<[MockEngine, MockEngine]> {
  const disagg = { ...more.disagg, ...disaggOf(carrier) };
  const options = { ...more, disagg };
  return [await startTiny(t, options), await startTiny(t, options)];
}

/** The flags of a prefill request, as routers send them. */
const PREFILL = {
  do_remote_decode: true,
  do_remote_prefill: false,
  remote_engine_id: null,
  remote_block_ids: null,
  remote_host: null,
  remote_port: null,
};

/** Sends the prefill of a prompt; the parameters for decode. */
export async function prefill(url: string, prompt: readonly number[], more: object = {}): Promise<Json> {
  const body = { prompt, max_tokens: 1, kv_transfer_params: PREFILL, ...more };
  const { status, json } = await postJson(url, '/v1/completions', body);
  if (status !== 200) throw new Error(JSON.stringify(json));
  return json.kv_transfer_params;
}

/** Ids of a whole answer of `maxTokens` tokens. */
export async function idsOf(
  url: string,
  prompt: readonly number[],
  maxTokens: number,
  params: object | null = null,
): Promise<number[]> {
  const body = { prompt, max_tokens: maxTokens, return_token_ids: true, kv_transfer_params: params };
  const { status, json } = await postJson(url, '/v1/completions', body);
  if (status !== 200) throw new Error(JSON.stringify(json));
  return json.choices[0].token_ids;
}

/** Resolves when `isTrue`, looking after each turn of the event loop; the test's own deadline ends it otherwise. */
export async function until(isTrue: () => boolean): Promise<void> {
  while (!isTrue()) await new Promise(resolve => setImmediate(resolve));
}

/** What is wrong with the blocks of an engine that has nothing to do any more; null when nothing is. */
export function leakOf({ core, connector, memory }: MockEngine): string | null {
  const { pool } = core;
  if (pool.pinned > 0) return `${pool.pinned} blocks are pinned`;
  if (pool.active > 0) return `${pool.active} blocks are held`;
  if (connector !== null && connector.desk.open > 0) return `${connector.desk.open} offers are open`;
  if (connector !== null && connector.pulls.pulling > 0)
    return `${connector.pulls.pulling} pulls are under way`;
  if (memory === null) return null;
  const { blocks, leases, inFlight } = memory.stats();
  const { pinned, quarantine, filling, ready, reserved } = blocks;
  const held = pool.capacity - pool.free;
  if (leases + inFlight + pinned! + quarantine! > 0)
    return `${leases} leases, ${inFlight} transfers, ${pinned} pins, ${quarantine} blocks in quarantine`;
  if (filling! + ready! + reserved! !== held)
    return `the table has ${filling! + ready! + reserved!} blocks, the pool ${held}`;
  return null;
}
