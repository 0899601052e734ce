// Promise: each rule of frame-scanner.ts holds on an example, for the native scanner and for the twin alike.
import t from 'tap';
import {
  FRAME,
  FRAME_FLAG,
  FRAME_IDS_MAX,
  FRAME_WORDS,
  FRAMES_MAX,
  SCAN_HEADER,
  SCAN_HEADER_WORDS,
} from '#millrace/engines/frame-descriptor.js';
import { createFrameScanner, type FrameScanner } from '#millrace/engines/frame-scanner.js';
import { loadAddon } from '#millrace/runtime/addon.js';

const addon = loadAddon();
const scanners: [string, FrameScanner][] = [['twin', createFrameScanner(null)]];
if (addon !== null) scanners.push(['native', createFrameScanner(addon)]);
const encoder = new TextEncoder();

type Row = Record<keyof typeof FRAME, number>;

function scan(
  scanner: FrameScanner,
  text: string,
): { rows: Row[]; consumed: number; full: number; ids: number[] } {
  const bytes = encoder.encode(text);
  scanner.scan(bytes, 0, bytes.length);
  const { table } = scanner;
  const rows = Array.from({ length: table[SCAN_HEADER.frames]! }, (_, row) => {
    const at = SCAN_HEADER_WORDS + row * FRAME_WORDS;
    return Object.fromEntries(Object.entries(FRAME).map(([name, word]) => [name, table[at + word]!])) as Row;
  });
  return {
    rows,
    consumed: table[SCAN_HEADER.consumed]!,
    full: table[SCAN_HEADER.full]!,
    ids: Array.from(scanner.ids.subarray(0, table[SCAN_HEADER.ids]!)),
  };
}

const choices = (member: string): string => `{"choices":[{"index":0,${member}}]}`;
const ids = (count: number): string => choices(`"token_ids":[${Array(count).fill(7).join()}]`);

for (const [name, scanner] of scanners) {
  const flagsOf = (json: string): number | undefined => scan(scanner, `data: ${json}\n\n`).rows[0]?.flags;

  t.test(`${name}: data that is not one JSON object is malformed`, async t => {
    const wrong = [
      '',
      '[]',
      '1',
      '"x"',
      'null',
      '{',
      '{}}',
      '{} {}',
      '{"a"}',
      '{"a":}',
      '{"a":1,}',
      '{"a":1 "b":2}',
      '{a:1}',
      '{"a":nul}',
      '{"a":[}',
      '{"a":[}]}',
      '{"a":"x}',
      '{"a":"\\"}',
      '[DONE] ',
      ' [DONE',
      '{"choices":{}}',
      '{"choices":[1]}',
      '{"choices":[{}',
      '{"choices":[{},]}',
      '{"choices":"x"}',
      choices('"index":-1'),
      choices('"index":1.5'),
      choices('"index":2147483648'),
      choices('"index":"0"'),
      choices('"token_ids":{}'),
      choices('"token_ids":[1,]'),
      choices('"token_ids":[,1]'),
      choices('"token_ids":[-1]'),
      choices('"token_ids":[1.0]'),
      choices('"token_ids":[4294967296]'),
      choices('"token_ids":[99999999999]'),
      choices('"token_ids":["1"]'),
      choices('"token_ids":[[1]]'),
    ];
    for (const json of wrong) t.equal(flagsOf(json), FRAME_FLAG.malformed, JSON.stringify(json));
    t.equal(
      scan(scanner, 'data: {"a":1,\ndata: "b":2}\n\n').rows[0]?.flags,
      FRAME_FLAG.malformed,
      'two data lines',
    );
    t.equal(scan(scanner, 'data\n\n').rows[0]?.flags, FRAME_FLAG.malformed, 'data without a value');
  });

  t.test(`${name}: a malformed row holds nothing else`, async t => {
    const text = 'data: {"usage":{},"choices":[{"index":3,"token_ids":[5]}]x\n\n';
    const { rows, ids: written } = scan(scanner, text);
    const { start, end, flags, idsCount, ...rest } = rows[0]!;
    t.same([start, end, flags, idsCount], [0, text.length, FRAME_FLAG.malformed, 0]);
    t.ok(Object.values(rest).every(word => word === -1));
    t.same(written, []);
  });

  t.test(`${name}: nesting is allowed to a depth of 64`, async t => {
    const nested = (depth: number): string => `{"a":${'['.repeat(depth - 1)}${']'.repeat(depth - 1)}}`;
    t.equal(flagsOf(nested(64)), 0);
    t.equal(flagsOf(nested(65)), FRAME_FLAG.malformed);
  });

  t.test(`${name}: of equal keys the last one counts, null is absent`, async t => {
    const twice = scan(
      scanner,
      'data: {"usage":{},"choices":[{},{}],"choices":[{"token_ids":[1],"token_ids":[2,3]}],"usage":null}\n\n',
    );
    t.equal(twice.rows[0]?.flags, 0);
    t.same(twice.ids, [2, 3]);
    const nulls = scan(
      scanner,
      `data: {"choices":null,"usage":null,"error":null}\n\ndata: ${choices('"token_ids":null,"text":null,"finish_reason":null')}\n\n`,
    );
    t.same(
      nulls.rows.map(row => [row.flags, row.textStart, row.idsFirst, row.idsCount]),
      [
        [0, -1, -1, 0],
        [0, -1, -1, 0],
      ],
    );
  });

  t.test(`${name}: an unfinished event is not consumed`, async t => {
    const done = 'data: [DONE]\n\n';
    const { rows, consumed, full } = scan(scanner, `${done}data: {}\n`);
    t.same([rows.length, consumed, full], [1, done.length, 0]);
    t.same([scan(scanner, '').rows.length, scan(scanner, '\n\r\n').consumed], [0, 3]);
  });

  t.test(`${name}: every kind of line end ends an event`, async t => {
    for (const blank of ['\n\n', '\r\n\r\n', '\r\r', '\n\r\n', '\r\n\n', '\n\r', '\r\n\r']) {
      const text = `data: {}${blank}`;
      const { rows, consumed } = scan(scanner, text);
      t.same(
        [rows.length, rows[0]?.end, consumed, rows[0]?.flags],
        [1, text.length, text.length, 0],
        JSON.stringify(blank),
      );
    }
  });

  t.test(`${name}: a full table stops the scan and says so`, async t => {
    const text = ':\n\n'.repeat(FRAMES_MAX + 1);
    const { rows, consumed, full } = scan(scanner, text);
    t.same([rows.length, consumed, full], [FRAMES_MAX, FRAMES_MAX * 3, 1]);
    t.equal(scan(scanner, ':\n\n'.repeat(FRAMES_MAX)).full, 0, 'nothing was left');
  });

  t.test(`${name}: ids that do not fit go to the next scan; a frame with too many says so`, async t => {
    const first = `data: ${ids(FRAME_IDS_MAX - 1)}\n\n`;
    const split = scan(scanner, `${first}data: ${ids(2)}\n\n`);
    t.same(
      [split.rows.length, split.consumed, split.full, split.ids.length],
      [1, first.length, 1, FRAME_IDS_MAX - 1],
    );
    const whole = scan(scanner, `data: ${ids(FRAME_IDS_MAX)}\n\n`);
    t.same([whole.rows[0]?.idsCount, whole.rows[0]?.flags], [FRAME_IDS_MAX, 0]);
    const over = scan(scanner, `data: ${ids(FRAME_IDS_MAX + 1)}\n\n`);
    t.same(
      [over.rows[0]?.flags, over.rows[0]?.idsFirst, over.rows[0]?.idsCount, over.ids.length],
      [FRAME_FLAG.idsOverflow, -1, 0, 0],
    );
    t.ok(over.rows[0]!.tokenIdsEnd > over.rows[0]!.tokenIdsStart);
  });

  t.test(`${name}: scans inside a larger buffer`, async t => {
    const bytes = encoder.encode('xxdata: {"usage":{}}\n\nyy\n\n');
    scanner.scan(bytes, 2, 22);
    t.same(Array.from(scanner.table.subarray(0, 4)), [1, 20, 0, 0]);
    t.equal(scanner.table[SCAN_HEADER_WORDS + FRAME.usageStart], 17);
  });

  t.test(`${name}: a range outside the bytes is refused`, async t => {
    const bytes = new Uint8Array(4);
    t.throws(() => scanner.scan(bytes, 0, 5), { name: 'RangeError', message: /^to / });
    t.throws(() => scanner.scan(bytes, 3, 2), { name: 'RangeError', message: /^from / });
    t.throws(() => scanner.scan(bytes, -1, 2), { name: 'RangeError', message: /^from / });
    t.throws(() => scanner.scan(bytes, 0, Number.NaN), { name: 'RangeError', message: /^to / });
  });
}
