/**
 * The payloads of the control frames of a worker link, as values and as bytes (R5). Pure. Reading checks every length and
 * count and throws RecordError, which the connection turns into a protocol error; the fields of a payload are in the order
 * in which they are written here. STEP and DATA have no codec: link-protocol.ts has their bytes.
 */

import { ByteReader } from '../../messages/byte-reader.js';
import { ByteWriter } from '../../messages/byte-writer.js';
import type { WorkerModel } from '../../messages/records.js';
import type { EngineHeaders } from '../client.js';
import { ENGINE_STATES, type EngineHealth, type LinkedCapabilities, type LinkedWorker } from './contract.js';
import {
  LINK_FAILS,
  LINK_FAULTS,
  LINK_MAGIC,
  type LinkFail,
  type LinkFault,
  NONCE_BYTES,
  PROOF_BYTES,
} from './link-protocol.js';

/** First frame of the worker side. */
export interface Hello {
  readonly versionMin: number;
  readonly versionMax: number;
  readonly capabilities: number;
  /** It has a secret, and demands a proof. */
  readonly hasSecret: boolean;
  readonly nonce: Uint8Array;
}

/** The plane's answer to HELLO, without its proof. */
export interface Challenge {
  readonly version: number;
  readonly capabilities: number;
  readonly hasSecret: boolean;
  readonly nonce: Uint8Array;
}

/** REGISTER without its proof. */
export interface Registration {
  readonly worker: LinkedWorker;
  /** Credit of a request body at its begin, bytes. */
  readonly bodyWindowBytes: number;
}

/** The head of a request; its body follows in BODY frames. */
export interface Opening {
  readonly method: string;
  readonly path: string;
  readonly head: readonly (readonly [string, string])[];
  readonly bodyBytes: number;
}

/** The head of the engine's answer. */
export interface AnswerHead {
  readonly status: number;
  readonly contentType: string;
  readonly headers: EngineHeaders;
}

const writer = new ByteWriter();
const NO_BYTES = new Uint8Array(0);
const MODELS_MAX = 65_536;
const RANKS_MAX = 256;

/** A nullable number of at least 0: −1 on the wire is null. */
const orMinusOne = (value: number | null): number => value ?? -1;
const orNull = (value: number): number | null => (value < 0 ? null : value);

function joined(parts: readonly Uint8Array[]): Uint8Array {
  return parts.length === 1 ? parts[0]! : Buffer.concat(parts);
}

function nonceOf(reader: ByteReader): Uint8Array {
  const nonce = reader.copy('nonce');
  if (nonce.length !== NONCE_BYTES) throw reader.fault('nonce', `${nonce.length} bytes, not ${NONCE_BYTES}`);
  return nonce;
}

/** HELLO as bytes. */
export function encodeHello(hello: Hello): Uint8Array {
  writer.begin().u32(LINK_MAGIC).u32(hello.versionMin).u32(hello.versionMax).u32(hello.capabilities);
  return joined(writer.bool(hello.hasSecret).blob([hello.nonce]).finish());
}

/** Reads HELLO. A later version may append fields: what follows the ones known here is not looked at. */
export function decodeHello(payload: Uint8Array): Hello {
  const reader = new ByteReader('HELLO', payload);
  if (reader.u32('magic') !== LINK_MAGIC) throw reader.fault('magic', 'is not that of a worker link');
  return {
    versionMin: reader.u32('versionMin'),
    versionMax: reader.u32('versionMax'),
    capabilities: reader.u32('capabilities'),
    hasSecret: reader.bool('hasSecret'),
    nonce: nonceOf(reader),
  };
}

/** CHALLENGE without its proof, as bytes; on the wire the proof follows. */
export function encodeChallenge(challenge: Challenge): Uint8Array {
  writer.begin().u32(challenge.version).u32(challenge.capabilities);
  return joined(writer.bool(challenge.hasSecret).blob([challenge.nonce]).finish());
}

/** Reads CHALLENGE without its proof. */
export function decodeChallenge(payload: Uint8Array): Challenge {
  const reader = new ByteReader('CHALLENGE', payload);
  const challenge = {
    version: reader.u32('version'),
    capabilities: reader.u32('capabilities'),
    hasSecret: reader.bool('hasSecret'),
    nonce: nonceOf(reader),
  };
  reader.end();
  return challenge;
}

/** Splits a payload that ends with a proof. Throws RecordError when it is shorter than one. */
export function splitProof(payload: Uint8Array): { readonly said: Uint8Array; readonly proof: Uint8Array } {
  const at = payload.length - PROOF_BYTES;
  if (at < 0) throw new ByteReader('handshake', payload).fault('proof', 'is missing');
  return { said: payload.slice(0, at), proof: payload.slice(at) };
}

/** REGISTER without its proof, as bytes; on the wire the proof follows. */
export function encodeRegistration({ worker, bodyWindowBytes }: Registration): Uint8Array {
  const { capabilities } = worker;
  writer.begin().string(worker.id).string(worker.url).u32(bodyWindowBytes);
  writer.string(capabilities.engine).string(capabilities.version ?? '');
  writer.f64(orMinusOne(capabilities.blockSize)).f64(orMinusOne(capabilities.totalBlocks));
  writer.f64(orMinusOne(capabilities.dpRanks));
  writer.bool(capabilities.returnsTokenIds).u32(capabilities.models.length);
  for (const model of capabilities.models) {
    writer.string(model.id).f64(orMinusOne(model.contextLength));
    writer.bool(model.adapter === true);
  }
  return joined(writer.finish());
}

/** Reads REGISTER without its proof. */
export function decodeRegistration(payload: Uint8Array): Registration {
  const reader = new ByteReader('REGISTER', payload);
  const id = reader.string('id');
  const url = reader.string('url');
  const bodyWindowBytes = reader.u32('bodyWindowBytes');
  const engine = reader.string('engine');
  const version = reader.string('version');
  const capabilities: LinkedCapabilities = {
    engine,
    version: version === '' ? null : version,
    blockSize: orNull(reader.integer('blockSize', -1)),
    totalBlocks: orNull(reader.integer('totalBlocks', -1)),
    dpRanks: ranksOf(reader),
    returnsTokenIds: reader.bool('returnsTokenIds'),
    models: readModels(reader),
  };
  reader.end();
  if (id === '' || id.length > 256) throw reader.fault('id', 'must have 1 to 256 characters');
  if (!/^https?:/.test(url) || !URL.canParse(url) || new URL(url).origin !== url)
    throw reader.fault('url', 'is no origin');
  return { worker: { id, url, capabilities }, bodyWindowBytes };
}

function ranksOf(reader: ByteReader): number | null {
  const ranks = orNull(reader.integer('dpRanks', -1));
  if (ranks === 0 || ranks! > RANKS_MAX) throw reader.fault('dpRanks', `must be from 1 to ${RANKS_MAX}`);
  return ranks;
}

function readModels(reader: ByteReader): WorkerModel[] {
  const count = reader.count('models', 13);
  if (count > MODELS_MAX) throw reader.fault('models', `${count} models; ${MODELS_MAX} are allowed`);
  return Array.from({ length: count }, () => {
    const id = reader.string('model');
    const contextLength = orNull(reader.integer('contextLength', -1));
    return { id, contextLength, ...(reader.bool('adapter') ? { adapter: true as const } : {}) };
  });
}

/** REFUSE as bytes. */
export function encodeRefusal({ kind, message }: LinkFault): Uint8Array {
  return joined(writer.begin().u8(LINK_FAULTS.indexOf(kind)).string(message).finish());
}

/** Reads REFUSE. */
export function decodeRefusal(payload: Uint8Array): LinkFault {
  const reader = new ByteReader('REFUSE', payload);
  return { kind: reader.oneOf('kind', LINK_FAULTS), message: reader.string('message').slice(0, 1000) };
}

/** OPEN as bytes. */
export function encodeOpening({ method, path, head, bodyBytes }: Opening): Uint8Array {
  return joined(writer.begin().string(method).string(path).pairs(head).u32(bodyBytes).finish());
}

/** Reads OPEN. */
export function decodeOpening(payload: Uint8Array): Opening {
  const reader = new ByteReader('OPEN', payload);
  const method = reader.string('method');
  const path = reader.string('path');
  const opening = { method, path, head: reader.pairs('head'), bodyBytes: reader.u32('bodyBytes') };
  reader.end();
  return opening;
}

/** HEAD as bytes. */
export function encodeHead(status: number, headers: EngineHeaders): Uint8Array {
  const pairs: [string, string][] = [];
  for (const [name, value] of Object.entries(headers)) {
    for (const one of typeof value === 'string' ? [value] : (value ?? [])) pairs.push([name, one]);
  }
  return joined(writer.begin().u32(status).pairs(pairs).finish());
}

/** Reads HEAD. */
export function decodeHead(payload: Uint8Array): AnswerHead {
  const reader = new ByteReader('HEAD', payload);
  const status = reader.u32('status');
  // No prototype: a header may have any name.
  const headers: Record<string, string | string[] | undefined> = Object.create(null);
  for (const [name, value] of reader.pairs('headers')) {
    const before = headers[name];
    headers[name] = before === undefined ? value : [before, value].flat();
  }
  reader.end();
  const contentType = headers['content-type'];
  return { status, contentType: typeof contentType === 'string' ? contentType : '', headers };
}

/** FAIL as bytes. */
export function encodeFail(fail: LinkFail, message: string): Uint8Array {
  return joined(writer.begin().u8(LINK_FAILS.indexOf(fail)).string(message).finish());
}

/** Reads FAIL. */
export function decodeFail(payload: Uint8Array): { readonly fail: LinkFail; readonly message: string } {
  const reader = new ByteReader('FAIL', payload);
  return { fail: reader.oneOf('fail', LINK_FAILS), message: reader.string('message').slice(0, 1000) };
}

/** The head of EVENTS, in front of the batch: its rank and the number of the frame within the rank. */
export function encodeEventsHead(rank: number, sequence: number): Uint8Array {
  return joined(writer.begin().u32(rank).integer(sequence).finish());
}

/** Reads EVENTS; the batch is copied. */
export function decodeEvents(payload: Uint8Array): {
  readonly rank: number;
  readonly sequence: number;
  readonly batch: Uint8Array;
} {
  const reader = new ByteReader('EVENTS', payload);
  return {
    rank: reader.u32('rank'),
    sequence: reader.integer('sequence'),
    batch: payload.length === EVENTS_HEAD_BYTES ? NO_BYTES : payload.slice(EVENTS_HEAD_BYTES),
  };
}

/** Bytes of EVENTS before the batch. */
export const EVENTS_HEAD_BYTES = 12;

/** HEALTH as bytes. */
export function encodeHealth(health: EngineHealth): Uint8Array {
  writer.begin().u8(ENGINE_STATES.indexOf(health.state));
  for (const value of [health.running, health.waiting, health.kvUsage, health.canaryMs])
    writer.f64(orMinusOne(value));
  return joined(writer.u32(health.canaryFailures).finish());
}

/** Reads HEALTH. */
export function decodeHealth(payload: Uint8Array): EngineHealth {
  const reader = new ByteReader('HEALTH', payload);
  const health = {
    state: reader.oneOf('state', ENGINE_STATES),
    running: orNull(reader.f64('running')),
    waiting: orNull(reader.f64('waiting')),
    kvUsage: orNull(reader.f64('kvUsage')),
    canaryMs: orNull(reader.f64('canaryMs')),
    canaryFailures: reader.u32('canaryFailures'),
  };
  reader.end();
  return health;
}
