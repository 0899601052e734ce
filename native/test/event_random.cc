// Decodes whole, damaged and cut off event batches, each in a buffer of exactly its size, into tables of exactly theirs.
#include "event_random.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "event_decode.h"
#include "millrace/event_descriptor.h"

namespace {

using Bytes = std::string;

Bytes text(const char* value) { return Bytes(1, static_cast<char>(0xa0 + std::strlen(value))) + value; }

Bytes header(uint32_t first, uint32_t first16, size_t size) {
  if (size < 16) return Bytes(1, static_cast<char>(first + size));
  return {static_cast<char>(first16), static_cast<char>(size >> 8), static_cast<char>(size)};
}

Bytes list(const std::vector<Bytes>& items) {
  Bytes bytes = header(0x90, 0xdc, items.size());
  for (const Bytes& item : items) bytes += item;
  return bytes;
}

Bytes number(std::mt19937& random) {
  const uint32_t value = random();
  switch (random() % 4) {
    case 0:
      return Bytes(1, static_cast<char>(value & 0x7f));
    case 1:
      return {static_cast<char>(0xcd), static_cast<char>(value), static_cast<char>(value >> 8)};
    case 2:
      return Bytes(1, static_cast<char>(0xd3)) + Bytes(8, static_cast<char>(value));
    default:
      return Bytes(1, static_cast<char>(0xce)) + Bytes(4, static_cast<char>(value));
  }
}

Bytes hash(std::mt19937& random) {
  if (random() % 2 == 0) return number(random);
  const uint32_t size = 1 + random() % 40;
  return Bytes{static_cast<char>(0xc4), static_cast<char>(size)} + Bytes(size, static_cast<char>(random()));
}

Bytes event(std::mt19937& random) {
  const char nil = static_cast<char>(0xc0);
  std::vector<Bytes> hashes(random() % 20);
  for (Bytes& each : hashes) each = hash(random);
  std::vector<Bytes> ids(random() % 40);
  for (Bytes& id : ids) id = Bytes(1, static_cast<char>(random() % 128));
  if (random() % 4 == 0) {
    for (Bytes& id : ids) id = list({id, id});
  }
  const Bytes media = list({text("image"), number(random)});
  const Bytes digest = Bytes{static_cast<char>(0xd9), 64} + Bytes(64, 'a');
  const Bytes keys = list({list({text("lora"), media, digest, text("salt")}), Bytes(1, nil), list({media})});
  std::vector<std::pair<const char*, Bytes>> fields;
  const char* tag = "BlockStored";
  if (random() % 3 != 0) {
    fields = {{"block_hashes", list(hashes)},  {"parent_block_hash", random() % 2 == 0 ? Bytes(1, nil) : hash(random)},
              {"token_ids", list(ids)},        {"block_size", Bytes(1, 4)},
              {"lora_id", Bytes(1, nil)},      {"medium", text("GPU")},
              {"lora_name", text("lora")},     {"extra_keys", keys},
              {"group_idx", Bytes(1, 0)},      {"kv_cache_spec_kind", text("mamba")}};
  } else {
    tag = random() % 2 == 0 ? "BlockRemoved" : "AllBlocksCleared";
    fields = {{"block_hashes", list(hashes)}, {"medium", text("CPU")}};
  }
  if (random() % 2 == 0) {
    Bytes map = header(0x80, 0xde, fields.size() + 1);
    for (const auto& [name, value] : fields) {
      map += header(0xa0, 0xda, std::strlen(name)) + name + value;
    }
    return map + text("type") + text(tag);
  }
  std::vector<Bytes> items{text(tag)};
  for (const auto& field : fields) items.push_back(field.second);
  return list(items);
}

}  // namespace

void event_random(long cases, std::mt19937& random) {
  std::vector<int32_t> rows(size_t{millrace::kEventRowsMax} * millrace::kEventRowWords);
  std::vector<uint32_t> parents(size_t{millrace::kEventRowsMax} * millrace::kEventHashWords);
  std::vector<uint32_t> hashes(size_t{millrace::kEventBlocksMax} * millrace::kEventHashWords);
  std::vector<uint32_t> tokens(millrace::kEventTokensMax);
  std::vector<uint32_t> media(size_t{millrace::kEventMediaMax} * millrace::kEventMediaWords);
  const millrace::EventTables tables{rows.data(), parents.data(), hashes.data(), tokens.data(), media.data()};
  long decoded = 0;
  for (long i = 0; i < cases; i++) {
    std::vector<Bytes> events(random() % 4);
    for (Bytes& each : events) each = event(random);
    Bytes batch = list({number(random), list(events), Bytes(1, 0)});
    for (uint32_t n = random() % 4; n > 0; n--) batch[random() % batch.size()] = static_cast<char>(random());
    if (random() % 4 == 0) batch.resize(random() % batch.size());
    const std::unique_ptr<uint8_t[]> bytes(new uint8_t[batch.size()]);
    std::memcpy(bytes.get(), batch.data(), batch.size());
    decoded += millrace::decode_events(tables, bytes.get(), batch.size()) >= 0 ? 1 : 0;
  }
  if (decoded < cases / 10) {
    std::fprintf(stderr, "failed: only %ld of %ld batches were decoded\n", decoded, cases);
    std::abort();
  }
}
