// The addon's functions as JavaScript sees them (src/runtime/addon.ts says what each means): check every argument,
// call the core, return. State is per environment, so that every JS thread of a process can load the addon.
#include <node_api.h>

#include "arguments.h"
#include "attachments.h"
#include "block_hash.h"
#include "frame_scan.h"
#include "index_functions.h"
#include "millrace/addon_abi.h"
#include "millrace/frame_descriptor.h"
#include "millrace/load_descriptor.h"
#include "reserve.h"

namespace millrace {
namespace {

uint64_t join(uint32_t low, uint32_t high) { return (uint64_t{high} << 32) | low; }

napi_value to_number(napi_env env, int64_t number) {
  napi_value value = nullptr;
  napi_create_int64(env, number, &value);
  return value;
}

napi_value js_hash_blocks(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  WordArray<uint32_t> ids;
  WordArray<uint32_t> block_hashes;
  WordArray<uint32_t> sequence_hashes;
  uint32_t block_size = 0;
  uint32_t block_low = 0;
  uint32_t block_high = 0;
  uint32_t chain_low = 0;
  uint32_t chain_high = 0;
  if (!arguments.uint32_array(0, "ids", &ids) || !arguments.u32(1, "blockSize", &block_size) ||
      !arguments.u32(2, "blockSeedLow", &block_low) || !arguments.u32(3, "blockSeedHigh", &block_high) ||
      !arguments.u32(4, "chainSeedLow", &chain_low) || !arguments.u32(5, "chainSeedHigh", &chain_high) ||
      !arguments.uint32_array(6, "blockHashesOut", &block_hashes) ||
      !arguments.uint32_array(7, "sequenceHashesOut", &sequence_hashes)) {
    return nullptr;
  }
  if (block_size == 0) {
    arguments.range_error("blockSize", "must be at least 1");
    return nullptr;
  }
  const size_t blocks = ids.length / block_size;
  if (block_hashes.length < blocks * 2) {
    arguments.range_error("blockHashesOut", "must hold 2 words per complete block");
    return nullptr;
  }
  if (sequence_hashes.length < blocks * 2) {
    arguments.range_error("sequenceHashesOut", "must hold 2 words per complete block");
    return nullptr;
  }
  hash_blocks(ids.words, block_size, static_cast<uint32_t>(blocks),
              HashSeeds{join(block_low, block_high), join(chain_low, chain_high)}, block_hashes.words,
              sequence_hashes.words);
  return to_number(env, static_cast<int64_t>(blocks));
}

template <class First, class Second>
Attachment* attach(Arguments* arguments, AttachmentKind kind, const char* first_name, const WordArray<First>& first,
                   const char* second_name, const WordArray<Second>& second, uint32_t* handle) {
  if (!first.shared || !second.shared) {
    arguments->range_error(first.shared ? second_name : first_name, "must be over a SharedArrayBuffer");
    return nullptr;
  }
  const napi_env env = arguments->env();
  Attachment* attachment =
      Attachments::of(env).add(env, kind, arguments->value(0), arguments->value(1), handle);
  if (attachment == nullptr) arguments->range_error("handles", "of this thread are all in use (255)");
  return attachment;
}

napi_value js_attach_frames(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  WordArray<int32_t> table;
  WordArray<uint32_t> ids;
  if (!arguments.int32_array(0, "table", &table) || !arguments.uint32_array(1, "ids", &ids)) return nullptr;
  if (table.length < kFrameTableWords) {
    arguments.range_error("table", "must hold FRAME_TABLE_WORDS words");
    return nullptr;
  }
  if (ids.length < kFrameIdsMax) {
    arguments.range_error("ids", "must hold FRAME_IDS_MAX words");
    return nullptr;
  }
  uint32_t handle = 0;
  Attachment* attachment = attach(&arguments, AttachmentKind::kFrames, "table", table, "ids", ids, &handle);
  if (attachment == nullptr) return nullptr;
  attachment->frames = FrameArrays{table.words, ids.words};
  return to_number(env, handle);
}

// Room below 2^31, so that no offset of the scanner can overflow.
constexpr uint32_t kOffsetMax = uint32_t{1} << 30;

napi_value js_scan_frames(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  WordArray<uint8_t> bytes;
  uint32_t handle = 0;
  uint32_t from = 0;
  uint32_t to = 0;
  if (!arguments.u32(0, "handle", &handle) || !arguments.uint8_array(1, "bytes", &bytes) ||
      !arguments.u32(2, "from", &from) || !arguments.u32(3, "to", &to)) {
    return nullptr;
  }
  if (to > bytes.length || to > kOffsetMax) {
    arguments.range_error("to", "must be at most the length of bytes and 2^30");
    return nullptr;
  }
  if (from > to) {
    arguments.range_error("from", "must be at most to");
    return nullptr;
  }
  const Attachment* attachment = Attachments::of(env).find(handle, AttachmentKind::kFrames);
  if (attachment == nullptr) {
    arguments.range_error("handle", "is not one that attachFrames gave to this thread");
    return nullptr;
  }
  scan_frames(bytes.words, static_cast<int32_t>(from), static_cast<int32_t>(to), attachment->frames.table,
              attachment->frames.ids);
  return nullptr;
}

napi_value js_attach_load(napi_env env, napi_callback_info info) {
  constexpr size_t kEntriesMax = size_t{1} << kReservationIndexBits;
  constexpr size_t kLinesMax = size_t{1} << 20;
  Arguments arguments(env, info);
  WordArray<uint32_t> table;
  WordArray<uint32_t> ledger;
  if (!arguments.uint32_array(0, "table", &table) || !arguments.uint32_array(1, "ledger", &ledger)) return nullptr;
  const size_t lines = table.length / kLoadLineWords;
  if (lines == 0 || lines > kLinesMax || table.length % kLoadLineWords != 0) {
    arguments.range_error("table", "must hold 1 to 2^20 whole lines of LOAD_LINE_WORDS");
    return nullptr;
  }
  const size_t entries = ledger.length / kLedgerEntryWords;
  if (entries == 0 || entries > kEntriesMax || ledger.length % kLedgerEntryWords != 0) {
    arguments.range_error("ledger", "must hold 1 to 2^20 whole entries of LEDGER_ENTRY_WORDS");
    return nullptr;
  }
  uint32_t handle = 0;
  Attachment* attachment = attach(&arguments, AttachmentKind::kLoad, "table", table, "ledger", ledger, &handle);
  if (attachment == nullptr) return nullptr;
  attachment->load = LoadSegments{table.words, ledger.words, static_cast<uint32_t>(lines),
                                  static_cast<uint32_t>(entries)};
  return to_number(env, handle);
}

napi_value js_reserve(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  ReserveRequest request{};
  uint32_t handle = 0;
  if (!arguments.u32(0, "handle", &handle) || !arguments.u32(1, "firstEntry", &request.first_entry) ||
      !arguments.u32(2, "entryCount", &request.entry_count) || !arguments.u32(3, "cursor", &request.cursor) ||
      !arguments.u32(4, "slot", &request.slot) ||
      !arguments.u32(5, "slotGeneration", &request.slot_generation) ||
      !arguments.u32(6, "prefillTokens", &request.prefill_tokens) ||
      !arguments.u32(7, "blocks", &request.blocks) || !arguments.u32(8, "ownerEpoch", &request.owner_epoch)) {
    return nullptr;
  }
  const Attachment* attachment = Attachments::of(env).find(handle, AttachmentKind::kLoad);
  if (attachment == nullptr) {
    arguments.range_error("handle", "is not one that attachLoad gave to this thread");
    return nullptr;
  }
  const LoadSegments& load = attachment->load;
  if (request.entry_count == 0 || request.first_entry >= load.entries ||
      request.entry_count > load.entries - request.first_entry) {
    arguments.range_error("firstEntry and entryCount", "must name at least 1 entry inside the ledger");
    return nullptr;
  }
  if (request.slot >= load.lines) {
    arguments.range_error("slot", "must be less than the lines of the load table");
    return nullptr;
  }
  return to_number(env, reserve(load, request));
}

napi_value js_detach(napi_env env, napi_callback_info info) {
  Arguments arguments(env, info);
  uint32_t handle = 0;
  if (!arguments.u32(0, "handle", &handle)) return nullptr;
  if (!Attachments::of(env).remove(env, handle)) {
    arguments.range_error("handle", "is not attached on this thread");
  }
  return nullptr;
}

void end_environment(napi_env env, void* data, void*) {
  auto* attachments = static_cast<Attachments*>(data);
  attachments->remove_all(env);
  delete attachments;
}

bool export_function(napi_env env, napi_value exports, const char* name, napi_callback callback) {
  napi_value function = nullptr;
  return napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function) == napi_ok &&
         napi_set_named_property(env, exports, name, function) == napi_ok;
}

}  // namespace
}  // namespace millrace

NAPI_MODULE_INIT() {
  using namespace millrace;
  // The runtime deletes it through end_environment when this thread's environment ends.
  if (napi_set_instance_data(env, new Attachments(), end_environment, nullptr) != napi_ok) return nullptr;
  const bool exported = export_function(env, exports, "hashBlocks", js_hash_blocks) &&
                        export_function(env, exports, "attachFrames", js_attach_frames) &&
                        export_function(env, exports, "scanFrames", js_scan_frames) &&
                        export_function(env, exports, "attachLoad", js_attach_load) &&
                        export_function(env, exports, "reserve", js_reserve) &&
                        export_function(env, exports, "detach", js_detach) && export_index_functions(env, exports) &&
                        napi_set_named_property(env, exports, "abi", to_number(env, kAddonAbi)) == napi_ok;
  return exported ? exports : nullptr;
}
