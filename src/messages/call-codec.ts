/** The bytes of a PLAN's calls and their steps (R2): a part of record-codec.ts, which has the format. */
import type { ByteReader } from './byte-reader.js';
import type { ByteWriter } from './byte-writer.js';
import { DISAGG_PROTOCOLS, SPLIT_REASONS, type SplitReason } from './disagg.js';
import { type PlanCall, type PlanStep, STEP_ANSWERS, STEP_STAGES } from './records.js';

/** `after` of a step that waits for none, and `spliceAt` of one whose body is whole. */
const NONE = 0xffff_ffff;
const PROTOCOLS = ['none', ...DISAGG_PROTOCOLS] as const;
const SPLITS = ['none', ...SPLIT_REASONS] as const;
/** Least bytes of a call and of a step: what a count of them is checked against. */
const CALL_BYTES_MIN = 18;
const STEP_BYTES_MIN = 38;

/** The words of `ids`, not copied. */
export function bytesOf(ids: Uint32Array): Uint8Array {
  return new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength);
}

/** Writes a PLAN's calls. */
export function writeCalls(out: ByteWriter, calls: readonly PlanCall[]): void {
  out.u32(calls.length);
  for (const { choiceBase, choices, promptIds, protocol, split, steps } of calls) {
    out
      .u32(choiceBase)
      .u32(choices)
      .blob([bytesOf(promptIds)])
      .u8(PROTOCOLS.indexOf(protocol ?? 'none'));
    writeSplit(out, split).u32(steps.length);
    for (const step of steps) writeStep(out, step);
  }
}

/** Reads a PLAN's calls. Throws RecordError. */
export function readCalls(reader: ByteReader): PlanCall[] {
  const calls: PlanCall[] = [];
  const callCount = reader.count('calls', CALL_BYTES_MIN);
  for (let call = 0; call < callCount; call += 1) {
    const choiceBase = reader.u32('call.choiceBase');
    const choices = reader.u32('call.choices');
    const promptIds = reader.copyWords('call.promptIds');
    const name = reader.oneOf('call.protocol', PROTOCOLS);
    const protocol = name === 'none' ? null : name;
    const split = readSplit(reader);
    const steps: PlanStep[] = [];
    const stepCount = reader.count('call.steps', STEP_BYTES_MIN);
    for (let step = 0; step < stepCount; step += 1) steps.push(readStep(reader, step));
    calls.push({ choiceBase, choices, promptIds, protocol, split, steps });
  }
  return calls;
}

/** Writes a reason, or that there is none. */
export function writeSplit(out: ByteWriter, split: SplitReason | null): ByteWriter {
  return out.u8(SPLITS.indexOf(split ?? 'none'));
}

/** Reads what `writeSplit` wrote. Throws RecordError. */
export function readSplit(reader: ByteReader): SplitReason | null {
  const split = reader.oneOf('split', SPLITS);
  return split === 'none' ? null : split;
}

function writeStep(out: ByteWriter, step: PlanStep): void {
  out
    .u8(STEP_STAGES.indexOf(step.stage))
    .u32(step.after ?? NONE)
    .u8(STEP_ANSWERS.indexOf(step.answer))
    .u32(step.slot)
    .u32(step.generation)
    .u32(step.reservation)
    .string(step.method)
    .string(step.path)
    .pairs(step.head)
    .u32(step.spliceAt ?? NONE)
    .blob([step.body]);
}

function readStep(reader: ByteReader, index: number): PlanStep {
  const stage = reader.oneOf('step.stage', STEP_STAGES);
  const after = reader.u32('step.after');
  if (after !== NONE && after >= index) {
    throw reader.fault('step.after', `${after} is not a step before ${index}`);
  }
  const answer = reader.oneOf('step.answer', STEP_ANSWERS);
  const slot = reader.u32('step.slot');
  const generation = reader.u32('step.generation');
  const reservation = reader.u32('step.reservation');
  const method = reader.string('step.method');
  const path = reader.string('step.path');
  const head = reader.pairs('step.head');
  const spliceAt = reader.u32('step.spliceAt');
  const body = reader.copy('step.body');
  if (spliceAt !== NONE && spliceAt > body.length)
    throw reader.fault('step.spliceAt', `${spliceAt} is behind a body of ${body.length} bytes`);
  return {
    stage,
    after: after === NONE ? null : after,
    answer,
    slot,
    generation,
    reservation,
    method,
    path,
    head,
    body,
    spliceAt: spliceAt === NONE ? null : spliceAt,
  };
}
