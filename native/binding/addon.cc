// The exports of the addon, and its functions for hashing, frames, load and events: see addon.h.
#include "addon.h"

#include <span>

#include "block_hash.h"
#include "event_decode.h"
#include "frame_scan.h"
#include "millrace/addon_abi.h"
#include "millrace/event_descriptor.h"
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
               function<&MillraceAddon::attach_event_tables>("attachEventTables"),
               function<&MillraceAddon::decode_events>("decodeEvents"),
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
               function<&MillraceAddon::index_lookup>("indexLookup"),
               function<&MillraceAddon::attach_lookup_arrays>("attachLookupArrays"),
               function<&MillraceAddon::index_lookup_attached>("indexLookupAttached"),
               function<&MillraceAddon::transfer_probe>("transferProbe"),
               function<&MillraceAddon::transfer_error>("transferError"),
               function<&MillraceAddon::transfer_open>("transferOpen"),
               function<&MillraceAddon::transfer_pool_create>("transferPoolCreate"),
               function<&MillraceAddon::transfer_pool_wrap>("transferPoolWrap"),
               function<&MillraceAddon::transfer_pool_device>("transferPoolDevice"),
               function<&MillraceAddon::transfer_pool_buffer>("transferPoolBuffer"),
               function<&MillraceAddon::transfer_pool_page_bytes>("transferPoolPageBytes"),
               function<&MillraceAddon::transfer_pool_close>("transferPoolClose"),
               function<&MillraceAddon::transfer_metadata>("transferMetadata"),
               function<&MillraceAddon::transfer_add_peer>("transferAddPeer"),
               function<&MillraceAddon::transfer_remove_peer>("transferRemovePeer"),
               function<&MillraceAddon::transfer_submit>("transferSubmit"),
               function<&MillraceAddon::transfer_cancel>("transferCancel"),
               function<&MillraceAddon::transfer_notify>("transferNotify"),
               function<&MillraceAddon::transfer_poll>("transferPoll"),
               function<&MillraceAddon::transfer_lease>("transferLease"),
               function<&MillraceAddon::transfer_release_lease>("transferReleaseLease"),
               function<&MillraceAddon::transfer_peer_lease<&kv::Agent::hold_lease>>("transferHoldLease"),
               function<&MillraceAddon::transfer_peer_lease<&kv::Agent::drop_lease>>("transferDropLease"),
               function<&MillraceAddon::transfer_stats>("transferStats"),
               function<&MillraceAddon::transfer_port_create>("transferPortCreate"),
               function<&MillraceAddon::transfer_port_close>("transferPortClose"),
               function<&MillraceAddon::transfer_port_open>("transferPortOpen"),
               function<&MillraceAddon::transfer_port_kick>("transferPortKick"),
               function<&MillraceAddon::transfer_port_wait>("transferPortWait"),
               function<&MillraceAddon::transfer_port_hold>("transferPortHold"),
               function<&MillraceAddon::transfer_port_pool>("transferPortPool"),
               function<&MillraceAddon::blocks_reserve>("blocksReserve"),
               function<&MillraceAddon::blocks_fill>("blocksFill"),
               function<&MillraceAddon::blocks_commit>("blocksCommit"),
               function<&MillraceAddon::blocks_pin>("blocksPin"),
               function<&MillraceAddon::blocks_match>("blocksMatch"),
               function<&MillraceAddon::blocks_expire>("blocksExpire"),
               function<&MillraceAddon::blocks_stats>("blocksStats"),
               function<&MillraceAddon::each_block<&kv::BlockTable::unpin>>("blocksUnpin"),
               function<&MillraceAddon::each_block<&kv::BlockTable::release>>("blocksRelease")});
}

// Entries of media are in the order of their blocks, so that one pass finds those of each.
bool is_ordered(std::span<const uint32_t> media) {
  for (size_t i = kBlockMediaWords; i < media.size(); i += kBlockMediaWords) {
    if (media[i] < media[i - kBlockMediaWords]) return false;
  }
  return true;
}

Napi::Value MillraceAddon::hash_blocks(Call& call) {
  const auto ids = call.array<uint32_t>(0, "ids");
  const uint32_t from = call.u32(1, "from");
  const uint32_t blocks = call.u32(2, "blocks");
  const uint32_t block_size = call.u32(3, "blockSize");
  const uint64_t block_seed = call.u64(4, "blockSeedLow", "blockSeedHigh");
  const uint64_t chain_seed = call.u64(6, "chainSeedLow", "chainSeedHigh");
  const bool has_parent = call.u32(8, "hasParent") != 0;
  const uint64_t parent = call.u64(9, "parentLow", "parentHigh");
  std::span<uint32_t> media;
  if (!call.argument(11).IsNull()) media = call.array<uint32_t>(11, "media");
  uint32_t* hashes = call.list(12, "sequenceHashesOut", blocks, 2);
  call.require(block_size > 0, "blockSize", "must be at least 1");
  call.require(from <= ids.size(), "from", "must be at most the length of ids");
  if (call.failed()) return {};
  call.require(blocks <= (ids.size() - from) / block_size, "blocks", "must lie inside ids");
  call.require(media.size() % kBlockMediaWords == 0, "media", "must be of 3 words each");
  call.require(is_ordered(media), "media", "must be in the order of their blocks");
  if (call.failed()) return {};
  const HashedBlocks what{ids.data() + from, block_size, blocks, media.data(),
                          static_cast<uint32_t>(media.size() / kBlockMediaWords)};
  millrace::hash_blocks(what, {block_seed, chain_seed}, has_parent ? &parent : nullptr, hashes);
  return {};
}

Napi::Value MillraceAddon::attach_frames(Call& call) {
  const auto table = call.shared_array<int32_t>(0, "table");
  const auto ids = call.shared_array<uint32_t>(1, "ids");
  call.require(table.size() >= kFrameTableWords, "table", "must hold FRAME_TABLE_WORDS words");
  call.require(ids.size() >= kFrameIdsMax, "ids", "must hold FRAME_IDS_MAX words");
  require_place(call);
  if (call.failed()) return {};
  return call.result(attachments_.add(FrameArrays{table.data(), ids.data()}, {call.argument(0), call.argument(1)}));
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
  return call.result(attachments_.add(load, {call.argument(0), call.argument(1)}));
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

Napi::Value MillraceAddon::attach_event_tables(Call& call) {
  const auto rows = call.shared_array<int32_t>(0, "rows");
  const auto parents = call.shared_array<uint32_t>(1, "parents");
  const auto hashes = call.shared_array<uint32_t>(2, "hashes");
  const auto tokens = call.shared_array<uint32_t>(3, "tokens");
  const auto media = call.shared_array<uint32_t>(4, "media");
  call.require(rows.size() >= size_t{kEventRowsMax} * kEventRowWords, "rows", "must hold EVENT_ROWS_MAX rows");
  call.require(parents.size() >= size_t{kEventRowsMax} * kEventHashWords, "parents", "must hold EVENT_ROWS_MAX hashes");
  call.require(hashes.size() >= size_t{kEventBlocksMax} * kEventHashWords, "hashes", "must hold EVENT_BLOCKS_MAX hashes");
  call.require(tokens.size() >= kEventTokensMax, "tokens", "must hold EVENT_TOKENS_MAX ids");
  call.require(media.size() >= size_t{kEventMediaMax} * kEventMediaWords, "media", "must hold EVENT_MEDIA_MAX entries");
  require_place(call);
  if (call.failed()) return {};
  const EventTables tables{rows.data(), parents.data(), hashes.data(), tokens.data(), media.data()};
  return call.result(attachments_.add(tables, {call.argument(0), call.argument(1), call.argument(2), call.argument(3),
                                               call.argument(4)}));
}

Napi::Value MillraceAddon::decode_events(Call& call) {
  const uint32_t handle = call.u32(0, "handle");
  const auto payload = call.array<uint8_t>(1, "payload");
  const auto* tables = attachments_.find<EventTables>(handle);
  call.require(tables != nullptr, "handle", "is not one that attachEventTables gave to this thread");
  if (call.failed()) return {};
  return call.result(millrace::decode_events(*tables, payload.data(), payload.size()));
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
