// The addon's functions of block tables, list by list: see src/runtime/transfer-addon.ts and native/transfer/block_table.h.
#include <string>

#include "addon.h"
#include "millrace/transfer_descriptor.h"

namespace millrace {
namespace {

void put(uint32_t* words, uint64_t value) {
  words[0] = static_cast<uint32_t>(value);
  words[1] = static_cast<uint32_t>(value >> 32);
}

std::string at_block(const char* verb, uint32_t block, kv::Status status) {
  return "block " + std::to_string(block) + " cannot be " + verb + ": " + kv::status_name(status);
}

}  // namespace

kv::BlockTable* MillraceAddon::table_of(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint32_t id = call.u32(1, "pool");
  if (call.failed()) return nullptr;
  kv::Pool* pool = agent->agent().pool(id);
  kv::BlockTable* table = pool == nullptr ? nullptr : pool->table();
  call.require(table != nullptr, "pool", "is not one with a block table");
  return table;
}

Napi::Value MillraceAddon::blocks_reserve(Call& call) {
  kv::BlockTable* table = table_of(call);
  const uint32_t count = call.u32(2, "count");
  const uint32_t tenant = call.u32(3, "tenant");
  uint32_t* blocks = call.list(4, "blocksOut", count, 1);
  uint32_t* generations = call.list(5, "generationsOut", count, 1);
  if (call.failed()) return {};
  return transfer_result(call, table->reserve(count, tenant, blocks, generations), {});
}

Napi::Value MillraceAddon::blocks_fill(Call& call) {
  kv::BlockTable* table = table_of(call);
  const auto blocks = call.array<uint32_t>(2, "blocks");
  if (call.failed()) return {};
  return transfer_result(call, table->fill(blocks), {});
}

Napi::Value MillraceAddon::blocks_commit(Call& call) {
  kv::BlockTable* table = table_of(call);
  const auto entries = call.array<uint32_t>(2, "entries");
  const auto count = static_cast<uint32_t>(entries.size() / kBlockCommitWords);
  call.require(entries.size() % kBlockCommitWords == 0, "entries", "must be of BLOCK_COMMIT_WORDS each");
  uint32_t* outcomes = call.list(3, "outcomesOut", count, kBlockOutcomeWords);
  if (call.failed()) return {};
  for (uint32_t i = 0; i < count; i++) {
    const uint32_t* entry = &entries[size_t{i} * kBlockCommitWords];
    const kv::BlockContent content{uint64_t{entry[2]} << 32 | entry[1], entry[3], entry[4]};
    uint32_t existing = kv::kNoBlock;
    const kv::Status status = table->commit(entry[0], content, &existing);
    outcomes[size_t{i} * kBlockOutcomeWords] = static_cast<uint32_t>(status);
    outcomes[size_t{i} * kBlockOutcomeWords + 1] = existing;
  }
  return call.result(0);
}

Napi::Value MillraceAddon::blocks_pin(Call& call) {
  kv::BlockTable* table = table_of(call);
  const auto blocks = call.array<uint32_t>(2, "blocks");
  const uint32_t* generations = call.list(3, "generations", static_cast<uint32_t>(blocks.size()), 1);
  const uint64_t until_ms = call.u64(4, "untilLow", "untilHigh");
  if (call.failed()) return {};
  for (size_t i = 0; i < blocks.size(); i++) {
    const kv::Status status = table->pin(blocks[i], generations[i], until_ms);
    if (status == kv::Status::kOk) continue;
    const std::string error = at_block("pinned", blocks[i], status);
    while (i-- > 0) table->unpin(blocks[i], generations[i]);
    return transfer_result(call, status, error);
  }
  return call.result(0);
}

template <kv::Status (kv::BlockTable::*method)(uint32_t, uint32_t)>
Napi::Value MillraceAddon::each_block(Call& call) {
  kv::BlockTable* table = table_of(call);
  const auto blocks = call.array<uint32_t>(2, "blocks");
  const auto count = static_cast<uint32_t>(blocks.size());
  const uint32_t* generations = call.list(3, "generations", count, 1);
  uint32_t* statuses = call.list(4, "statusesOut", count, 1);
  if (call.failed()) return {};
  for (uint32_t i = 0; i < count; i++) {
    statuses[i] = static_cast<uint32_t>((table->*method)(blocks[i], generations[i]));
  }
  return call.result(0);
}

template Napi::Value MillraceAddon::each_block<&kv::BlockTable::unpin>(Call&);
template Napi::Value MillraceAddon::each_block<&kv::BlockTable::release>(Call&);

Napi::Value MillraceAddon::blocks_match(Call& call) {
  kv::BlockTable* table = table_of(call);
  const auto words = call.array<uint32_t>(2, "hashes");
  call.require(words.size() % 2 == 0, "hashes", "must be of 2 words each");
  const auto count = static_cast<uint32_t>(words.size() / 2);
  uint32_t* blocks = call.list(3, "blocksOut", count, 1);
  uint32_t* generations = call.list(4, "generationsOut", count, 1);
  if (call.failed()) return {};
  std::vector<uint64_t> hashes(count);
  for (size_t i = 0; i < count; i++) hashes[i] = uint64_t{words[2 * i + 1]} << 32 | words[2 * i];
  const uint32_t matched = table->match(hashes, blocks);
  for (uint32_t i = 0; i < matched; i++) generations[i] = table->generation(blocks[i]);
  return call.result(matched);
}

Napi::Value MillraceAddon::blocks_expire(Call& call) {
  kv::BlockTable* table = table_of(call);
  const uint64_t now_ms = call.u64(2, "nowLow", "nowHigh");
  if (call.failed()) return {};
  table->expire(now_ms);
  table->settle();
  return call.result(0);
}

Napi::Value MillraceAddon::blocks_stats(Call& call) {
  kv::BlockTable* table = table_of(call);
  uint32_t* out = call.list(2, "out", kBlockStatsCount, 2);
  if (call.failed()) return {};
  const kv::BlockStats stats = table->stats();
  const uint64_t numbers[kBlockStatsCount] = {stats.free,       stats.reserved, stats.filling,   stats.ready,
                                              stats.quarantine, stats.pinned,   stats.evictions, stats.refused};
  for (uint32_t i = 0; i < kBlockStatsCount; i++) put(out + size_t{i} * 2, numbers[i]);
  return call.result(0);
}

}  // namespace millrace
