// The prefix index's functions of the addon: see addon.h.
#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <type_traits>

#include "addon.h"
#include "prefix_index.h"

namespace millrace {
namespace {

uint32_t read_holder(Call& call) {
  const uint32_t holder = call.u32(1, "holder");
  call.require(holder < kIndexHolders, "holder", "must be below 4096");
  return holder;
}

uint32_t read_tier(Call& call, size_t index) {
  const uint32_t tier = call.u32(index, "tier");
  call.require(tier < kIndexTiers, "tier", "must be 0, 1 or 2");
  return tier;
}

Napi::Value look_up(Call& call, IndexReader& reader, const uint32_t* hashes, uint32_t blocks, const uint32_t* holders,
                    uint32_t holder_count, uint32_t* depths) {
  const bool known = holder_count <= kIndexHolders &&
                     std::all_of(holders, holders + holder_count, [](uint32_t id) { return id < kIndexHolders; });
  call.require(known, "holders", "must be at most 4096 integers below 4096");
  if (call.failed()) return {};
  const uint32_t given_up = reader.given_up();
  const uint32_t retries = reader.lookup(hashes, blocks, holders, holder_count, depths);
  return call.result(int64_t{reader.given_up() - given_up} << 32 | retries);
}

}  // namespace

template <class Kind>
Napi::Value MillraceAddon::attach_index(Call& call) {
  const auto words = call.shared_array<uint32_t>(0, "words");
  IndexView view;
  const bool whole = !call.failed() && reinterpret_cast<uintptr_t>(words.data()) % 64 == 0 &&
                     view_index(words.data(), words.size(), &view);
  call.require(whole, "words", "must be a whole index segment from its first word on");
  require_place(call);
  if (call.failed()) return {};
#ifdef MADV_HUGEPAGE
  // Probes go everywhere: with small pages most of them would miss the TLB as well. Only advice: may be refused.
  if constexpr (std::is_same_v<Kind, IndexWriter>) madvise(words.data(), words.size_bytes(), MADV_HUGEPAGE);
#endif
  return call.result(attachments_.add(std::make_unique<Kind>(view), {call.argument(0)}));
}

template Napi::Value MillraceAddon::attach_index<IndexWriter>(Call&);
template Napi::Value MillraceAddon::attach_index<IndexReader>(Call&);

template <class Kind>
Kind* MillraceAddon::index_of(Call& call) {
  const auto* found = attachments_.find<std::unique_ptr<Kind>>(call.u32(0, "handle"));
  call.require(found != nullptr, "handle", "is not one of an index attached on this thread");
  return found == nullptr ? nullptr : found->get();
}

Napi::Value MillraceAddon::index_holder(Call& call) {
  auto* writer = index_of<IndexWriter>(call);
  const uint32_t holder = read_holder(call);
  const uint32_t change = call.u32(2, "change");
  call.require(change <= 2, "change", "must be 0, 1 or 2");
  if (call.failed()) return {};
  const bool done = change == 0   ? writer->add_holder(holder)
                    : change == 1 ? writer->remove_holder(holder)
                                  : writer->clear_holder(holder);
  return call.result(done ? 1 : 0);
}

Napi::Value MillraceAddon::index_store(Call& call) {
  auto* writer = index_of<IndexWriter>(call);
  const uint32_t holder = read_holder(call);
  const bool has_parent = call.u32(2, "hasParent") != 0;
  const uint64_t parent = call.u64(3, "parentLow", "parentHigh");
  const uint32_t count = call.u32(6, "count");
  const uint32_t* hashes = call.list(5, "hashes", count, 2);
  const uint32_t tier = read_tier(call, 7);
  const uint32_t* engine_hashes =
      call.argument(8).IsNull() ? nullptr : call.list(8, "engineHashes", count, kIndexEngineHashWords);
  if (call.failed()) return {};
  return call.result(writer->store(holder, has_parent, parent, hashes, count, tier, engine_hashes));
}

Napi::Value MillraceAddon::index_remove(Call& call) {
  auto* writer = index_of<IndexWriter>(call);
  const uint32_t holder = read_holder(call);
  const uint32_t count = call.u32(3, "count");
  const uint32_t tier = read_tier(call, 4);
  const bool by_engine_hash = call.u32(5, "byEngineHash") != 0;
  const uint32_t* hashes = call.list(2, "hashes", count, by_engine_hash ? kIndexEngineHashWords : 2);
  if (call.failed()) return {};
  return call.result(by_engine_hash ? writer->remove_engine(holder, hashes, count, tier)
                                     : writer->remove(holder, hashes, count, tier));
}

Napi::Value MillraceAddon::index_translate(Call& call) {
  auto* writer = index_of<IndexWriter>(call);
  const uint32_t holder = read_holder(call);
  const uint32_t count = call.u32(3, "count");
  const uint32_t* engine_hashes = call.list(2, "engineHashes", count, kIndexEngineHashWords);
  uint32_t* hashes = call.list(4, "hashesOut", count, 2);
  if (call.failed()) return {};
  return call.result(writer->translate(holder, engine_hashes, count, hashes));
}

Napi::Value MillraceAddon::index_predict(Call& call) {
  auto* writer = index_of<IndexWriter>(call);
  const uint32_t holder = read_holder(call);
  const uint32_t from = call.u32(3, "from");
  const uint32_t to = call.u32(4, "to");
  const uint32_t* hashes = call.list(2, "sequenceHashes", to, 2);
  const uint64_t expires_ms = call.u64(5, "expiresLow", "expiresHigh");
  call.require(from <= to, "from", "must be at most to");
  if (call.failed()) return {};
  return call.result(writer->predict(holder, hashes, from, to, expires_ms));
}

Napi::Value MillraceAddon::index_expire(Call& call) {
  auto* writer = index_of<IndexWriter>(call);
  const uint64_t now_ms = call.u64(1, "nowLow", "nowHigh");
  if (!call.failed()) writer->expire(now_ms);
  return {};
}

Napi::Value MillraceAddon::index_sweep(Call& call) {
  auto* writer = index_of<IndexWriter>(call);
  const uint32_t steps = call.u32(1, "stepsMax");
  if (call.failed()) return {};
  return call.result(writer->sweep(steps) ? 1 : 0);
}

Napi::Value MillraceAddon::index_stats(Call& call) {
  auto* writer = index_of<IndexWriter>(call);
  uint32_t* out = call.list(1, "out", kIndexStatsCount, 2);
  if (!call.failed()) writer->stats(out);
  return {};
}

Napi::Value MillraceAddon::index_lookup(Call& call) {
  auto* reader = index_of<IndexReader>(call);
  const uint32_t blocks = call.u32(2, "blocks");
  const uint32_t* hashes = call.list(1, "sequenceHashes", blocks, 2);
  const uint32_t holder_count = call.u32(4, "holderCount");
  const uint32_t* holders = call.list(3, "holders", holder_count, 1);
  uint32_t* depths = call.list(5, "depthsOut", holder_count, 2);
  if (call.failed()) return {};
  return look_up(call, *reader, hashes, blocks, holders, holder_count, depths);
}

Napi::Value MillraceAddon::attach_lookup_arrays(Call& call) {
  const LookupArrays arrays{call.shared_array<uint32_t>(0, "sequenceHashes"), call.shared_array<uint32_t>(1, "holders"),
                            call.shared_array<uint32_t>(2, "depthsOut")};
  require_place(call);
  if (call.failed()) return {};
  return call.result(attachments_.add(arrays, {call.argument(0), call.argument(1), call.argument(2)}));
}

Napi::Value MillraceAddon::index_lookup_attached(Call& call) {
  auto* reader = index_of<IndexReader>(call);
  const auto* arrays = attachments_.find<LookupArrays>(call.u32(1, "arrays"));
  const uint32_t blocks = call.u32(2, "blocks");
  const uint32_t holder_count = call.u32(3, "holderCount");
  call.require(arrays != nullptr, "arrays", "is not a handle that attachLookupArrays gave to this thread");
  if (call.failed()) return {};
  call.require(blocks <= arrays->hashes.size() / 2, "blocks", "must lie inside sequenceHashes");
  call.require(holder_count <= arrays->holders.size() && holder_count <= arrays->depths.size() / 2, "holderCount",
               "must lie inside holders and depthsOut");
  if (call.failed()) return {};
  return look_up(call, *reader, arrays->hashes.data(), blocks, arrays->holders.data(), holder_count,
                 arrays->depths.data());
}

}  // namespace millrace
