/**
 * Writes the C++ headers of the shared layouts from their TypeScript descriptors (compiled, in dist/). Run it after a
 * change to a descriptor: `node native/generate-descriptors.mjs`. With `--check` it writes nothing and exits 1 when a
 * committed header differs from what it would write.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import * as frame from '#millrace/engines/frame-descriptor.js';
import * as event from '#millrace/router/events/event-tables.js';
import { ENGINE_HASH_WORDS, HOLDERS_MAX, TIER } from '#millrace/router/index/contract.js';
import * as index from '#millrace/router/index/index-descriptor.js';
import * as load from '#millrace/router/load-descriptor.js';
import { ADDON_ABI } from '#millrace/runtime/addon.js';
import * as transfer from '#millrace/transfer/descriptor.js';
import * as port from '#millrace/transfer/port-descriptor.js';

const pascal = name => name[0].toUpperCase() + name.slice(1);
const constant = (name, value, type) => `inline constexpr ${type} k${name} = ${value};`;
const constants = (prefix, values, type) =>
  Object.entries(values).map(([name, value]) => constant(prefix + pascal(name), value, type));

const headers = {
  'addon_abi.h': ['src/runtime/addon.ts', [constant('AddonAbi', ADDON_ABI, 'uint32_t')]],
  'event_descriptor.h': [
    'src/router/events/event-tables.ts',
    [
      ...constants('EventKind', event.EVENT_KIND, 'int32_t'),
      ...constants('EventTier', event.EVENT_TIER, 'int32_t'),
      ...constants('EventGroup', event.EVENT_GROUP, 'int32_t'),
      constant('EventRowWords', event.EVENT_ROW_WORDS, 'uint32_t'),
      ...constants('EventRow', event.EVENT_ROW, 'uint32_t'),
      constant('EventMediaWords', event.EVENT_MEDIA_WORDS, 'uint32_t'),
      constant('EventHashWords', ENGINE_HASH_WORDS, 'uint32_t'),
      constant('EventRowsMax', event.EVENT_ROWS_MAX, 'uint32_t'),
      constant('EventBlocksMax', event.EVENT_BLOCKS_MAX, 'uint32_t'),
      constant('EventTokensMax', event.EVENT_TOKENS_MAX, 'uint32_t'),
      constant('EventMediaMax', event.EVENT_MEDIA_MAX, 'uint32_t'),
      ...constants('DecodeFault', event.DECODE_FAULT, 'int32_t'),
    ],
  ],
  'frame_descriptor.h': [
    'src/engines/frame-descriptor.ts',
    [
      constant('FrameWords', frame.FRAME_WORDS, 'uint32_t'),
      constant('FramesMax', frame.FRAMES_MAX, 'uint32_t'),
      constant('FrameIdsMax', frame.FRAME_IDS_MAX, 'uint32_t'),
      ...constants('Frame', frame.FRAME, 'uint32_t'),
      ...constants('FrameFlag', frame.FRAME_FLAG, 'int32_t'),
      constant('ScanHeaderWords', frame.SCAN_HEADER_WORDS, 'uint32_t'),
      ...constants('ScanHeader', frame.SCAN_HEADER, 'uint32_t'),
      constant('FrameTableWords', frame.FRAME_TABLE_WORDS, 'uint32_t'),
    ],
  ],
  'index_descriptor.h': [
    'src/router/index/index-descriptor.ts',
    [
      constant('IndexMagic', index.INDEX_MAGIC, 'uint32_t'),
      constant('IndexHeaderWords', index.INDEX_HEADER_WORDS, 'uint32_t'),
      ...constants('IndexHeader', index.INDEX_HEADER, 'uint32_t'),
      constant('IndexHolders', HOLDERS_MAX, 'uint32_t'),
      constant('IndexSlots', index.INDEX_SLOTS, 'uint32_t'),
      constant('IndexStripes', index.INDEX_STRIPES, 'uint32_t'),
      constant('IndexBlockWords', index.INDEX_BLOCK_WORDS, 'uint32_t'),
      constant('IndexChunkWords', index.INDEX_CHUNK_WORDS, 'uint32_t'),
      constant('IndexNameWords', index.INDEX_NAME_WORDS, 'uint32_t'),
      constant('IndexPredictionWords', index.INDEX_PREDICTION_WORDS, 'uint32_t'),
      constant('IndexAlignWords', index.INDEX_ALIGN_WORDS, 'uint32_t'),
      constant('IndexChunksMax', index.INDEX_CHUNKS_MAX, 'uint32_t'),
      ...constants('IndexFlag', index.INDEX_FLAG, 'uint32_t'),
      constant('IndexTiers', Object.keys(TIER).length, 'uint32_t'),
      constant('IndexEngineHashWords', ENGINE_HASH_WORDS, 'uint32_t'),
      constant('IndexStatsCount', index.INDEX_STATS.length, 'uint32_t'),
    ],
  ],
  'load_descriptor.h': [
    'src/router/load-descriptor.ts',
    [
      constant('LoadLineWords', load.LOAD_LINE_WORDS, 'uint32_t'),
      ...constants('Load', load.LOAD, 'uint32_t'),
      constant('LedgerEntryWords', load.LEDGER_ENTRY_WORDS, 'uint32_t'),
      ...constants('Ledger', load.LEDGER, 'uint32_t'),
      ...constants('LedgerState', load.LEDGER_STATE, 'uint32_t'),
      constant('LedgerGenerationShift', load.LEDGER_GENERATION_SHIFT, 'uint32_t'),
      constant('ReservationIndexBits', load.RESERVATION_INDEX_BITS, 'uint32_t'),
    ],
  ],
  'port_descriptor.h': [
    'transfer/port-descriptor.ts',
    [
      constant('PortEntriesMin', port.PORT_ENTRIES_MIN, 'uint32_t'),
      constant('PortEntriesMax', port.PORT_ENTRIES_MAX, 'uint32_t'),
      constant('PortHeaderWords', port.PORT_HEADER_WORDS, 'uint32_t'),
      ...constants('Port', port.PORT_HEADER, 'uint32_t'),
      ...constants('PortState', port.PORT_STATE, 'uint32_t'),
      ...constants('PortWaiting', port.PORT_WAITING, 'uint32_t'),
      constant('PortEntryWords', port.PORT_ENTRY_WORDS, 'uint32_t'),
      ...constants('PortEntry', port.PORT_ENTRY, 'uint32_t'),
      ...constants('PortFlagShift', port.PORT_FLAG_SHIFT, 'uint32_t'),
      constant('PortCompletionWords', port.PORT_COMPLETION_WORDS, 'uint32_t'),
      ...constants('PortCompletion', port.PORT_COMPLETION, 'uint32_t'),
      constant('PortTextBytes', port.PORT_TEXT_BYTES, 'uint32_t'),
    ],
  ],
  'transfer_descriptor.h': [
    'transfer/descriptor.ts',
    [
      constant('TransferRequestWords', transfer.TRANSFER_REQUEST_WORDS, 'uint32_t'),
      ...constants('TransferRequest', transfer.TRANSFER_REQUEST, 'uint32_t'),
      constant('TransferLayoutWords', transfer.TRANSFER_LAYOUT_WORDS, 'uint32_t'),
      ...constants('TransferLayout', transfer.TRANSFER_LAYOUT, 'uint32_t'),
      constant('TransferPlaneWords', transfer.TRANSFER_PLANE_WORDS, 'uint32_t'),
      constant('TransferEventWords', transfer.TRANSFER_EVENT_WORDS, 'uint32_t'),
      ...constants('TransferEvent', transfer.TRANSFER_EVENT, 'uint32_t'),
      ...constants('TransferEventKind', transfer.TRANSFER_EVENT_KIND, 'uint32_t'),
      constant('BlockCommitWords', transfer.BLOCK_COMMIT_WORDS, 'uint32_t'),
      constant('BlockOutcomeWords', transfer.BLOCK_OUTCOME_WORDS, 'uint32_t'),
      constant('BlockStatsCount', transfer.BLOCK_STATS.length, 'uint32_t'),
      `inline constexpr const char* kTransports[] = {${transfer.TRANSPORTS.map(name => `"${name}"`).join(', ')}};`,
      constant('TransferMetadataBytes', transfer.METADATA_BYTES_MAX, 'uint32_t'),
      constant('TransferBlocks', transfer.TRANSFER_BLOCKS_MAX, 'uint32_t'),
      constant('TransferNotificationBytes', transfer.NOTIFICATION_BYTES_MAX, 'uint32_t'),
    ],
  ],
};

const render = (source, lines) =>
  [
    `// Generated by native/generate-descriptors.mjs from ${source}. Do not edit.`,
    '#pragma once',
    '',
    '#include <cstdint>',
    '',
    'namespace millrace {',
    '',
    ...lines,
    '',
    '}  // namespace millrace',
    '',
  ].join('\n');

const check = process.argv.includes('--check');
for (const [file, [source, lines]] of Object.entries(headers)) {
  const url = new URL(`include/millrace/${file}`, import.meta.url);
  const wanted = render(source, lines);
  if (!check) writeFileSync(url, wanted);
  else if (readFileSync(url, 'utf8') !== wanted) {
    console.error(
      `native/include/millrace/${file} is not what ${source} says: run node native/generate-descriptors.mjs`,
    );
    process.exitCode = 1;
  }
}
