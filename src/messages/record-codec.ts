/**
 * The bytes of every record that crosses a ring between a socket and a pool thread (R2). Each begins with
 * RECORD_VERSION; the ring's own header has the kind. An `encode…` gives the record as parts for the ring's `send`, with
 * bodies and prompt ids by reference; a `decode…` throws RecordError for bytes that are not exactly such a record.
 *
 *     version u8 │ fields in the order written here │ numbers little-endian │ integers beyond 32 bits as f64
 *     string: bytes u32, UTF-8 │ list: count u32, items │ name of a fixed set: index u8
 *     blob: bytes u32, zeros up to a multiple of 8 from the start of the record, bytes
 */
import { ERROR_CODES, type ErrorCode } from '../errors.js';
import { ByteReader } from './byte-reader.js';
import { ByteWriter } from './byte-writer.js';
import { bytesOf, readCalls, readSplit, writeCalls, writeSplit } from './call-codec.js';
import {
  type AnswerMode,
  ASK_REASONS,
  type Ask,
  type Continuation,
  type ContinuedChoice,
  type Done,
  END_CAUSES,
  IDS_SOURCES,
  type Plan,
  type PlanCandidate,
  type PlanPlacement,
  RECORD_VERSION,
  type Reject,
  type World,
} from './records.js';
import type { Api, Stop } from './token-request.js';
import { worldFromJson } from './world-shape.js';

export { RecordError } from './byte-reader.js';

const APIS = ['chat', 'completions'] as const satisfies readonly Api[];
const MODES = ['token', 'relayIds', 'relay'] as const satisfies readonly AnswerMode[];
/** The modes in which an answer can go on elsewhere: the first ones of MODES. */
const CONTINUED_MODES = ['token', 'relayIds'] as const satisfies readonly AnswerMode[];
const CODES = Object.keys(ERROR_CODES) as ErrorCode[];
/** `rank` of a worker that has none. */
const RANK_NONE = 0xffff_ffff;
/** `logprobs` of a plan that has none. */
const LOGPROBS_NONE = 0xff;
/** Least bytes of each: what a count of them is checked against. */
const CONTINUED_BYTES_MIN = 8;
const CANDIDATE_BYTES_MIN = 37;

/** One per thread: a module is loaded once in each. */
const writer = new ByteWriter();

const begin = (): ByteWriter => writer.begin().u8(RECORD_VERSION);

function open(record: string, bytes: Uint8Array): ByteReader {
  const reader = new ByteReader(record, bytes);
  const version = reader.u8('version');
  if (version !== RECORD_VERSION) throw reader.fault('version', `${version} is not ${RECORD_VERSION}`);
  return reader;
}

/** Bytes of an ASK. `body` is the request body in order, in as many chunks as it came; they are not copied. */
export function encodeAsk(ask: Omit<Ask, 'body'>, body: readonly Uint8Array[]): Uint8Array[] {
  const out = begin()
    .integer(ask.request)
    .u32(ask.attempt)
    .u8(APIS.indexOf(ask.api))
    .u8(ASK_REASONS.indexOf(ask.reason))
    .f64(ask.deadlineWallMs)
    .words(ask.excludedSlots)
    .words(ask.avoidedSlots)
    .bool(ask.computesLocally)
    .pairs(ask.headers)
    .string(ask.hints.worker)
    .string(ask.hints.session)
    .bool(ask.hints.explains)
    .bool(ask.continuation !== null);
  if (ask.continuation !== null) writeContinuation(out, ask.continuation);
  return out.blob(body).finish();
}

/** The ASK in `bytes`. Its `body` is a view of them: copy it to keep it longer than they are valid. */
export function decodeAsk(bytes: Uint8Array): Ask {
  const reader = open('ASK', bytes);
  const ask: Ask = {
    request: reader.integer('request'),
    attempt: reader.u32('attempt'),
    api: reader.oneOf('api', APIS),
    reason: reader.oneOf('reason', ASK_REASONS),
    deadlineWallMs: reader.f64('deadlineWallMs'),
    excludedSlots: reader.words('excludedSlots'),
    avoidedSlots: reader.words('avoidedSlots'),
    computesLocally: reader.bool('computesLocally'),
    headers: reader.pairs('headers'),
    hints: {
      worker: reader.string('hints.worker'),
      session: reader.string('hints.session'),
      explains: reader.bool('hints.explains'),
    },
    continuation: reader.bool('continuation') ? readContinuation(reader) : null,
    body: reader.view('body'),
  };
  reader.end();
  return ask;
}

function writeContinuation(out: ByteWriter, { mode, promptIds, choices }: Continuation): void {
  out
    .u8(MODES.indexOf(mode))
    .blob([bytesOf(promptIds)])
    .u32(choices.length);
  for (const { choice, ids } of choices) out.u32(choice).blob([bytesOf(ids)]);
}

function readContinuation(reader: ByteReader): Continuation {
  const mode = reader.oneOf('continuation.mode', CONTINUED_MODES);
  const promptIds = reader.copyWords('continuation.promptIds');
  const choices: ContinuedChoice[] = [];
  const count = reader.count('continuation.choices', CONTINUED_BYTES_MIN);
  for (let index = 0; index < count; index += 1)
    choices.push({ choice: reader.u32('continuation.choice'), ids: reader.copyWords('continuation.ids') });
  return { mode, promptIds, choices };
}

/** Bytes of a PLAN. Prompt ids and bodies are not copied: leave them unchanged until the record is sent. */
export function encodePlan(plan: Plan): Uint8Array[] {
  const out = begin()
    .integer(plan.request)
    .u32(plan.attempt)
    .integer(plan.decision)
    .u8(MODES.indexOf(plan.mode))
    .u8(APIS.indexOf(plan.api))
    .bool(plan.stream)
    .string(plan.model)
    .u32(plan.choices)
    .integer(plan.promptTokens)
    .bool(plan.includeUsage)
    .bool(plan.continuousUsage)
    .bool(plan.usageInjected)
    .bool(plan.idsInjected)
    .u8(plan.logprobs ?? LOGPROBS_NONE)
    .bool(plan.skipSpecialTokens);
  writeStop(out, plan.stop);
  writeAmount(out, plan.maxTokens);
  out.string(plan.cannotMigrate);
  out.words(plan.eosIds).string(plan.tokenizer);
  writePlacement(out, plan.placement);
  writeCalls(out, plan.calls);
  return out.finish();
}

/** The PLAN in `bytes`. Its ids and bodies are copies in memory that is not shared: they outlive the ring record. */
export function decodePlan(bytes: Uint8Array): Plan {
  const reader = open('PLAN', bytes);
  const plan: Plan = {
    request: reader.integer('request'),
    attempt: reader.u32('attempt'),
    decision: reader.integer('decision'),
    mode: reader.oneOf('mode', MODES),
    api: reader.oneOf('api', APIS),
    stream: reader.bool('stream'),
    model: reader.string('model'),
    choices: reader.u32('choices'),
    promptTokens: reader.integer('promptTokens'),
    includeUsage: reader.bool('includeUsage'),
    continuousUsage: reader.bool('continuousUsage'),
    usageInjected: reader.bool('usageInjected'),
    idsInjected: reader.bool('idsInjected'),
    logprobs: readLogprobs(reader),
    skipSpecialTokens: reader.bool('skipSpecialTokens'),
    stop: readStop(reader),
    maxTokens: readAmount(reader, 'maxTokens'),
    cannotMigrate: reader.string('cannotMigrate'),
    eosIds: new Uint32Array(reader.words('eosIds')),
    tokenizer: reader.string('tokenizer'),
    placement: readPlacement(reader),
    calls: readCalls(reader),
  };
  reader.end();
  return plan;
}

function readLogprobs(reader: ByteReader): number | null {
  const logprobs = reader.u8('logprobs');
  return logprobs === LOGPROBS_NONE ? null : logprobs;
}

function writeAmount(out: ByteWriter, amount: number | null): void {
  out.bool(amount !== null).integer(amount ?? 0);
}

function readAmount(reader: ByteReader, field: string): number | null {
  const isGiven = reader.bool(field);
  const amount = reader.integer(field);
  return isGiven ? amount : null;
}

function writeStop(out: ByteWriter, stop: Stop): void {
  writeAmount(out, stop.maxTokens);
  out.integer(stop.minTokens);
  out.u32(stop.strings.length);
  for (const text of stop.strings) out.string(text);
  out.words(stop.tokenIds).bool(stop.ignoreEos).bool(stop.includeStopString);
}

function readStop(reader: ByteReader): Stop {
  const maxTokens = readAmount(reader, 'stop.maxTokens');
  const minTokens = reader.integer('stop.minTokens');
  const strings: string[] = [];
  const count = reader.count('stop.strings', 4);
  for (let index = 0; index < count; index += 1) strings.push(reader.string('stop.strings'));
  return {
    maxTokens,
    minTokens,
    strings,
    tokenIds: reader.words('stop.tokenIds'),
    ignoreEos: reader.bool('stop.ignoreEos'),
    includeStopString: reader.bool('stop.includeStopString'),
  };
}

function writePlacement(out: ByteWriter, placement: PlanPlacement): void {
  const { policy, reason, rank, ids, cachedTokens, candidates } = placement;
  out
    .string(policy)
    .string(reason)
    .u32(rank ?? RANK_NONE);
  out.u8(IDS_SOURCES.indexOf(ids)).integer(cachedTokens);
  out.bool(candidates !== null).u32(candidates?.length ?? 0);
  for (const candidate of candidates ?? []) {
    const { worker, cost, queuedTokens, requests } = candidate;
    out
      .string(worker)
      .bool(cost !== null)
      .f64(cost ?? 0);
    out.integer(candidate.cachedTokens).f64(queuedTokens).integer(requests);
  }
}

function readPlacement(reader: ByteReader): PlanPlacement {
  const policy = reader.string('placement.policy');
  const reason = reader.string('placement.reason');
  const rank = reader.u32('placement.rank');
  const ids = reader.oneOf('placement.ids', IDS_SOURCES);
  const cachedTokens = reader.integer('placement.cachedTokens');
  const hasCandidates = reader.bool('placement.candidates');
  const candidates: PlanCandidate[] = [];
  const count = reader.count('placement.candidates', CANDIDATE_BYTES_MIN);
  for (let index = 0; index < count; index += 1) candidates.push(readCandidate(reader));
  return {
    policy,
    reason,
    rank: rank === RANK_NONE ? null : rank,
    ids,
    cachedTokens,
    candidates: hasCandidates ? candidates : null,
  };
}

function readCandidate(reader: ByteReader): PlanCandidate {
  const worker = reader.string('candidate.worker');
  const hasCost = reader.bool('candidate.cost');
  const cost = reader.f64('candidate.cost');
  return {
    worker,
    cost: hasCost ? cost : null,
    cachedTokens: reader.integer('candidate.cachedTokens'),
    queuedTokens: reader.f64('candidate.queuedTokens'),
    requests: reader.integer('candidate.requests'),
  };
}

/** Bytes of a REJECT. */
export function encodeReject(reject: Reject): Uint8Array[] {
  const out = begin()
    .integer(reject.request)
    .u32(reject.attempt)
    .u8(CODES.indexOf(reject.code))
    .string(reject.message)
    .bool(reject.param !== null)
    .string(reject.param ?? '')
    .f64(reject.retryAfterMs);
  return writeSplit(out, reject.split).finish();
}

/** The REJECT in `bytes`. */
export function decodeReject(bytes: Uint8Array): Reject {
  const reader = open('REJECT', bytes);
  const request = reader.integer('request');
  const attempt = reader.u32('attempt');
  const code = reader.oneOf('code', CODES);
  const message = reader.string('message');
  const hasParam = reader.bool('param');
  const param = reader.string('param');
  const retryAfterMs = reader.f64('retryAfterMs');
  if (retryAfterMs < 0) throw reader.fault('retryAfterMs', 'is negative');
  const split = readSplit(reader);
  reader.end();
  return { request, attempt, code, message, param: hasParam ? param : null, retryAfterMs, split };
}

/** Bytes of a DONE. */
export function encodeDone(done: Done): Uint8Array[] {
  return begin()
    .integer(done.request)
    .string(done.model)
    .integer(done.promptTokens)
    .integer(done.completionTokens)
    .integer(done.cachedTokens, -1)
    .u8(END_CAUSES.indexOf(done.cause))
    .finish();
}

/** The DONE in `bytes`. */
export function decodeDone(bytes: Uint8Array): Done {
  const reader = open('DONE', bytes);
  const done: Done = {
    request: reader.integer('request'),
    model: reader.string('model'),
    promptTokens: reader.integer('promptTokens'),
    completionTokens: reader.integer('completionTokens'),
    cachedTokens: reader.integer('cachedTokens', -1),
    cause: reader.oneOf('cause', END_CAUSES),
  };
  reader.end();
  return done;
}

/** Bytes of a WORLD: JSON after the version, because it is rare and has many small fields. */
export function encodeWorld(world: World): Uint8Array[] {
  return [Uint8Array.of(RECORD_VERSION), Buffer.from(JSON.stringify(world))];
}

/** The WORLD in `bytes`. */
export function decodeWorld(bytes: Uint8Array): World {
  const reader = open('WORLD', bytes);
  let value: unknown;
  try {
    value = JSON.parse(reader.rest());
  } catch {
    throw reader.fault('json', 'is not JSON');
  }
  return worldFromJson(value);
}
