// Promise: fields of any valid JSON object are found as exact byte ranges, and rewriting keeps every other byte.
import t from 'tap';
import {
  fieldsOf,
  findField,
  firstItem,
  rewriteObject,
  withFields,
} from '#millrace/engines/disagg/json-bytes.js';
import { seededRandom } from '#millrace/runtime/random.js';

const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
const random = seededRandom(seed);
const below = (n: number): number => Math.floor(random() * n);
const STRINGS = [
  '',
  'a',
  '}',
  '{"x":1}',
  '[',
  '\\',
  '\\"',
  '"',
  '\\\\"}',
  'é😀',
  '\n',
  'kv_transfer_params',
  ',',
];

function value(depth: number): unknown {
  const kind = below(depth > 3 ? 4 : 6);
  if (kind === 0) return STRINGS[below(STRINGS.length)];
  if (kind === 1) return below(1e9) / 7;
  if (kind === 2) return random() < 0.5;
  if (kind === 3) return null;
  if (kind === 4) return Array.from({ length: below(4) }, () => value(depth + 1));
  return object(depth + 1);
}

function object(depth: number): Record<string, unknown> {
  const names = Array.from({ length: below(5) }, () => `${STRINGS[below(STRINGS.length)]}${below(3)}`);
  return Object.fromEntries(names.map(name => [name, value(depth)]));
}

const text = (one: unknown): Buffer => Buffer.from(JSON.stringify(one, null, below(3)));
const parse = (bytes: Uint8Array): unknown => JSON.parse(Buffer.from(bytes).toString());

t.test(`random objects (SEED=${seed})`, async t => {
  for (let round = 0; round < 3000; round += 1) {
    const given = object(0);
    const bytes = text(given);
    const found = fieldsOf(bytes)!;
    const read = Object.fromEntries(
      found.map(({ name, valueStart, valueEnd }) => [name, parse(bytes.subarray(valueStart, valueEnd))]),
    );
    if (JSON.stringify(read) !== JSON.stringify(given)) t.same(read, given, bytes.toString());
    const names = Object.keys(given);
    const drop = new Set(names.filter(() => random() < 0.4));
    const set = [
      ['new', '{"a":[1]}'] as const,
      ...(names[0] === undefined ? [] : [[names[0], '7'] as const]),
    ];
    const kept = names.filter(name => !drop.has(name) && name !== names[0]);
    const wanted = { ...Object.fromEntries(kept.map(name => [name, given[name]])), new: { a: [1] } };
    const expected = names[0] === undefined ? wanted : { ...wanted, [names[0]]: 7 };
    t.strictSame(parse(rewriteObject(bytes, drop, set)), expected);
    if (names.length > 0)
      t.strictSame(parse(withFields(Buffer.from(JSON.stringify(given)), [['n0', '1']])), { n0: 1, ...given });
  }
});

t.test('what is no object has no fields; the last of two fields counts; names may be escaped', async t => {
  for (const other of ['[1]', '"{}"', '7', 'null']) t.equal(fieldsOf(Buffer.from(other)), null);
  const twice = Buffer.from('{"a":1,"\\u0061": [ {"b":"]"} ] }');
  const field = findField(fieldsOf(twice), 'a')!;
  t.equal(twice.toString('utf8', field.valueStart, field.valueEnd), '[ {"b":"]"} ]');
  t.equal(findField(fieldsOf(twice), 'b'), null);
  t.equal(firstItem(twice, field.valueStart), twice.indexOf('{"b"'));
  t.equal(firstItem(Buffer.from('[ ]'), 0), null);
  t.equal(firstItem(Buffer.from('{}'), 0), null);
});
