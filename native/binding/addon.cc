// The exports of the addon, and its functions for hashing, frames and load: see addon.h.
#include "addon.h"

#include "block_hash.h"
#include "frame_scan.h"
#include "millrace/addon_abi.h"
#include "millrace/frame_descriptor.h"
#include "millrace/load_descriptor.h"

namespace millrace {

MillraceAddon::MillraceAddon(Napi::Env env, Napi::Object exports) {
  DefineAddon(exports,
              {InstanceValue("abi", Napi::Number::New(env, kAddonAbi)),
               function<&MillraceAddon::hash_blocks>("hashBlocks"),
               function<&MillraceAddon::attach_frames>("attachFrames"),
               function<&MillraceAddon::scan_frames>("scanFrames"),
               function<&MillraceAddon::attach_load>("attachLoad"),
               function<&MillraceAddon::reserve>("reserve"),
               function<&MillraceAddon::detach>("detach"),
               function<&MillraceAddon::attach_index<IndexWriter>>("attachIndexWriter"),
               function<&MillraceAddon::attach_index<IndexReader>>("attachIndexReader"),
               function<&MillraceAddon::index_holder>("indexHolder"),
               function<&MillraceAddon::index_store>("indexStore"),
               function<&MillraceAddon::index_remove>("indexRemove"),
               function<&MillraceAddon::index_translate>("indexTranslate"),
               function<&MillraceAddon::index_predict>("indexPredict"),
               function<&MillraceAddon::index_expire>("indexExpire"),
               function<&MillraceAddon::index_sweep>("indexSweep"),
               function<&MillraceAddon::index_stats>("indexStats"),
               function<&MillraceAddon::index_lookup>("indexLookup")});
}

Napi::Value MillraceAddon::hash_blocks(Call& call) {
  const auto ids = call.array<uint32_t>(0, "ids");
  const uint32_t block_size = call.u32(1, "blockSize");
  const uint32_t block_low = call.u32(2, "blockSeedLow");
  const uint32_t block_high = call.u32(3, "blockSeedHigh");
  const uint32_t chain_low = call.u32(4, "chainSeedLow");
  const uint32_t chain_high = call.u32(5, "chainSeedHigh");
  const auto block_hashes = call.array<uint32_t>(6, "blockHashesOut");
  const auto sequence_hashes = call.array<uint32_t>(7, "sequenceHashesOut");
  call.require(block_size > 0, "blockSize", "must be at least 1");
  if (call.failed()) return {};
  const size_t blocks = ids.size() / block_size;
  call.require(block_hashes.size() >= blocks * 2, "blockHashesOut", "must hold 2 words per complete block");
  call.require(sequence_hashes.size() >= blocks * 2, "sequenceHashesOut", "must hold 2 words per complete block");
  if (call.failed()) return {};
  const HashSeeds seeds{join_hash(block_low, block_high), join_hash(chain_low, chain_high)};
  millrace::hash_blocks(ids.data(), block_size, static_cast<uint32_t>(blocks), seeds, block_hashes.data(),
                        sequence_hashes.data());
  return call.result(static_cast<int64_t>(blocks));
}

Napi::Value MillraceAddon::attach_frames(Call& call) {
  const auto table = call.shared_array<int32_t>(0, "table");
  const auto ids = call.shared_array<uint32_t>(1, "ids");
  call.require(table.size() >= kFrameTableWords, "table", "must hold FRAME_TABLE_WORDS words");
  call.require(ids.size() >= kFrameIdsMax, "ids", "must hold FRAME_IDS_MAX words");
  require_place(call);
  if (call.failed()) return {};
  return call.result(attachments_.add(FrameArrays{table.data(), ids.data()}, call.argument(0), call.argument(1)));
}

// Room below 2^31, so that no offset of the scanner can overflow.
constexpr uint32_t kOffsetMax = uint32_t{1} << 30;

Napi::Value MillraceAddon::scan_frames(Call& call) {
  const uint32_t handle = call.u32(0, "handle");
  const auto bytes = call.array<uint8_t>(1, "bytes");
  const uint32_t from = call.u32(2, "from");
  const uint32_t to = call.u32(3, "to");
  call.require(to <= bytes.size() && to <= kOffsetMax, "to", "must be at most the length of bytes and 2^30");
  call.require(from <= to, "from", "must be at most to");
  const auto* frames = attachments_.find<FrameArrays>(handle);
  call.require(frames != nullptr, "handle", "is not one that attachFrames gave to this thread");
  if (call.failed()) return {};
  millrace::scan_frames(bytes.data(), static_cast<int32_t>(from), static_cast<int32_t>(to), frames->table, frames->ids);
  return {};
}

Napi::Value MillraceAddon::attach_load(Call& call) {
  constexpr size_t kEntriesMax = size_t{1} << kReservationIndexBits;
  constexpr size_t kLinesMax = size_t{1} << 20;
  const auto table = call.shared_array<uint32_t>(0, "table");
  const auto ledger = call.shared_array<uint32_t>(1, "ledger");
  const size_t lines = table.size() / kLoadLineWords;
  call.require(lines > 0 && lines <= kLinesMax && table.size() % kLoadLineWords == 0, "table",
               "must hold 1 to 2^20 whole lines of LOAD_LINE_WORDS");
  const size_t entries = ledger.size() / kLedgerEntryWords;
  call.require(entries > 0 && entries <= kEntriesMax && ledger.size() % kLedgerEntryWords == 0, "ledger",
               "must hold 1 to 2^20 whole entries of LEDGER_ENTRY_WORDS");
  require_place(call);
  if (call.failed()) return {};
  const LoadSegments load{table.data(), ledger.data(), static_cast<uint32_t>(lines), static_cast<uint32_t>(entries)};
  return call.result(attachments_.add(load, call.argument(0), call.argument(1)));
}

Napi::Value MillraceAddon::reserve(Call& call) {
  const uint32_t handle = call.u32(0, "handle");
  const ReserveRequest request{
      .first_entry = call.u32(1, "firstEntry"),
      .entry_count = call.u32(2, "entryCount"),
      .cursor = call.u32(3, "cursor"),
      .slot = call.u32(4, "slot"),
      .slot_generation = call.u32(5, "slotGeneration"),
      .prefill_tokens = call.u32(6, "prefillTokens"),
      .blocks = call.u32(7, "blocks"),
      .owner_epoch = call.u32(8, "ownerEpoch"),
  };
  const auto* load = attachments_.find<LoadSegments>(handle);
  call.require(load != nullptr, "handle", "is not one that attachLoad gave to this thread");
  if (call.failed()) return {};
  call.require(request.entry_count > 0 && request.first_entry < load->entries &&
                   request.entry_count <= load->entries - request.first_entry,
               "firstEntry and entryCount", "must name at least 1 entry inside the ledger");
  call.require(request.slot < load->lines, "slot", "must be less than the lines of the load table");
  if (call.failed()) return {};
  return call.result(millrace::reserve(*load, request));
}

Napi::Value MillraceAddon::detach(Call& call) {
  const uint32_t handle = call.u32(0, "handle");
  call.require(attachments_.remove(handle), "handle", "is not attached on this thread");
  return {};
}

void MillraceAddon::require_place(Call& call) const {
  call.require(!attachments_.full(), "handles", "of this thread are all in use (255)");
}

}  // namespace millrace

using millrace::MillraceAddon;
NODE_API_NAMED_ADDON(millrace, MillraceAddon)
