/**
 * The shape of a WORLD that came as JSON (R2): every field is checked for its type and range and copied into a fresh
 * object, so that a pool thread never plans with a fleet that it only half understood. Pool thread.
 */
import { RecordError } from './byte-reader.js';
import { readDisaggregation, readSplit } from './disagg-shape.js';
import { ANSWER_MODES, type AnswerMode, type ModelView, type WorkerView, type World } from './records.js';

const U32_MAX = 0xffff_ffff;

type Fields = Readonly<Record<string, unknown>>;

const fault = (field: string, expected: string): RecordError =>
  new RecordError('WORLD', field, `is not ${expected}`);

function fieldsOf(value: unknown, field: string): Fields {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw fault(field, 'an object');
  return value as Fields;
}

function listOf<Item>(value: unknown, field: string, read: (item: unknown, field: string) => Item): Item[] {
  if (!Array.isArray(value)) throw fault(field, 'a list');
  return value.map((item, index) => read(item, `${field}[${index}]`));
}

function text(value: unknown, field: string): string {
  if (typeof value !== 'string') throw fault(field, 'a string');
  return value;
}

function whole(value: unknown, field: string, max = Number.MAX_SAFE_INTEGER, min = 0): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < min || value > max) {
    throw fault(field, `a whole number from ${min} to ${max}`);
  }
  return value;
}

function flag(value: unknown, field: string): boolean {
  if (typeof value !== 'boolean') throw fault(field, 'true or false');
  return value;
}

function onlyTrue(value: unknown, field: string): true {
  if (value !== true) throw fault(field, 'true or absent');
  return value;
}

function mode(value: unknown, field: string): AnswerMode {
  const known = ANSWER_MODES.find(name => name === value);
  if (known === undefined) throw fault(field, `one of ${ANSWER_MODES.join(', ')}`);
  return known;
}

/** A positive number of tokens or blocks, or null. */
function amountOrNull(value: unknown, field: string): number | null {
  return value === null ? null : whole(value, field, Number.MAX_SAFE_INTEGER, 1);
}

function readWorker(value: unknown, field: string): WorkerView {
  const worker = fieldsOf(value, field);
  return {
    slot: whole(worker.slot, `${field}.slot`, U32_MAX),
    generation: whole(worker.generation, `${field}.generation`, U32_MAX),
    url: text(worker.url, `${field}.url`),
    rank: worker.rank === null ? null : whole(worker.rank, `${field}.rank`, U32_MAX),
    engine: text(worker.engine, `${field}.engine`),
    models: listOf(worker.models, `${field}.models`, (item, name) => {
      const model = fieldsOf(item, name);
      return {
        id: text(model.id, `${name}.id`),
        contextLength: amountOrNull(model.contextLength, `${name}.contextLength`),
        ...(model.adapter === undefined ? {} : { adapter: onlyTrue(model.adapter, `${name}.adapter`) }),
        ...(model.parent === undefined ? {} : { parent: text(model.parent, `${name}.parent`) }),
        ...(model.path === undefined ? {} : { path: text(model.path, `${name}.path`) }),
      };
    }),
    blockSize: amountOrNull(worker.blockSize, `${field}.blockSize`),
    totalBlocks: amountOrNull(worker.totalBlocks, `${field}.totalBlocks`),
    returnsTokenIds: flag(worker.returnsTokenIds, `${field}.returnsTokenIds`),
    ...(worker.answerModes === undefined
      ? {}
      : { answerModes: listOf(worker.answerModes, `${field}.answerModes`, mode) }),
    foreignIds: listOf(worker.foreignIds, `${field}.foreignIds`, text),
    ...(worker.split === undefined
      ? {}
      : { split: readSplit(fieldsOf(worker.split, `${field}.split`), `${field}.split`, fault) }),
  };
}

function readModel(value: unknown, field: string): ModelView {
  const model = fieldsOf(value, field);
  return {
    name: text(model.name, `${field}.name`),
    policy: text(model.policy, `${field}.policy`),
    tokenizer: model.tokenizer === null ? null : text(model.tokenizer, `${field}.tokenizer`),
    contextLength: amountOrNull(model.contextLength, `${field}.contextLength`),
    ...(model.disaggregation === undefined
      ? {}
      : {
          disaggregation: readDisaggregation(
            fieldsOf(model.disaggregation, `${field}.disaggregation`),
            `${field}.disaggregation`,
            fault,
          ),
        }),
  };
}

/** The WORLD that `value` is. Throws RecordError naming the field that is wrong. */
export function worldFromJson(value: unknown): World {
  const world = fieldsOf(value, 'world');
  return {
    version: whole(world.version, 'version'),
    workers: listOf(world.workers, 'workers', readWorker),
    models: listOf(world.models, 'models', readModel),
  };
}
