/** The protocols by name (R5): what a PLAN or a configuration names, as the object that does it. Pure. */
import type { DisaggProtocolName } from '../../messages/disagg.js';
import type { DisaggProtocol } from './contract.js';
import { sglangRooms } from './sglang-rooms.js';
import { trtllmContextFirst, trtllmGenerationFirst } from './trtllm.js';
import { vllmMooncake } from './vllm-mooncake.js';
import { vllmNixl } from './vllm-nixl.js';

const PROTOCOLS: Readonly<Record<DisaggProtocolName, DisaggProtocol>> = {
  nixl: vllmNixl,
  mooncake: vllmMooncake,
  'sglang-rooms': sglangRooms,
  'trtllm-context-first': trtllmContextFirst,
  'trtllm-generation-first': trtllmGenerationFirst,
};

/** The protocol of that name. */
export function protocolOf(name: DisaggProtocolName): DisaggProtocol {
  return PROTOCOLS[name];
}

/** The protocol of an engine's workers where none is set: the one that needs nothing but their URLs, if there is one. */
const DEFAULTS: Readonly<Record<string, DisaggProtocolName>> = {
  vllm: 'nixl',
  sglang: 'sglang-rooms',
  trtllm: 'trtllm-context-first',
};

/** Null: workers of this engine cannot be split. */
export function defaultProtocol(engine: string): DisaggProtocolName | null {
  return DEFAULTS[engine] ?? null;
}

/** Workers of this engine can compute prompts although they are started for decode; true where that is unknown. */
export function computesPrompts(engine: string): boolean {
  const name = defaultProtocol(engine);
  return name === null || protocolOf(name).decodeComputes;
}
