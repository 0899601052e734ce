// Reading one KV event: see event_reader.h.
#include "event_reader.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "block_hash.h"

namespace millrace {

enum class EventField : uint8_t {
  kUnknown,
  kHashes,
  kParent,
  kTokens,
  kBlockSize,
  kAdapterId,
  kMedium,
  kAdapter,
  kExtraKeys,
  kGroup,
  kGroupKind,
};

namespace {

struct NamedField {
  std::string_view name;
  EventField field;
};

// In the order of their positions behind the tag.
constexpr NamedField kStoreFields[] = {
    {"block_hashes", EventField::kHashes}, {"parent_block_hash", EventField::kParent},
    {"token_ids", EventField::kTokens},    {"block_size", EventField::kBlockSize},
    {"lora_id", EventField::kAdapterId},   {"medium", EventField::kMedium},
    {"lora_name", EventField::kAdapter},   {"extra_keys", EventField::kExtraKeys},
    {"group_idx", EventField::kGroup},     {"kv_cache_spec_kind", EventField::kGroupKind},
};
constexpr NamedField kRemoveFields[] = {
    {"block_hashes", EventField::kHashes}, {"medium", EventField::kMedium}, {"group_idx", EventField::kGroup}};

struct Medium {
  std::string_view name;
  int32_t tier;
};
constexpr Medium kMediums[] = {
    {"GPU", kEventTierDevice},        {"CPU", kEventTierHost},         {"CPU_PINNED", kEventTierHost},
    {"CPU_TIER1", kEventTierHost},    {"DISK", kEventTierDisk},        {"CPU_TIER2", kEventTierExternal},
    {"EXTERNAL", kEventTierExternal}, {"NETWORK", kEventTierExternal}, {"REMOTE", kEventTierExternal},
    {"SHARED", kEventTierExternal},
};
constexpr std::string_view kFullGroups[] = {"full_attention", "mla_attention", "sink_full_attention"};

constexpr uint32_t kWordMax = 0x7fffffff;
constexpr uint32_t kDigestDigits = 64;
constexpr uint32_t kMediaHashDigits = 16;

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

bool is_digest(std::string_view text) {
  return text.size() == kDigestDigits && std::all_of(text.begin(), text.end(), [](char c) { return hex_digit(c) >= 0; });
}

// The 64 bits by which a medium is known: the beginning of a digest, else the hash of its name.
uint64_t media_hash(std::string_view text) {
  if (!is_digest(text)) return hash_text(text.data(), text.size());
  uint64_t hash = 0;
  for (uint32_t i = 0; i < kMediaHashDigits; i++) hash = hash << 4 | static_cast<uint64_t>(hex_digit(text[i]));
  return hash;
}

}  // namespace

struct EventTag {
  std::string_view name;
  int32_t kind;
  std::span<const NamedField> fields;
};

namespace {

constexpr EventTag kTags[] = {{"BlockStored", kEventKindStore, kStoreFields},
                              {"BlockRemoved", kEventKindRemove, kRemoveFields},
                              {"AllBlocksCleared", kEventKindClear, {}}};
constexpr EventTag kUnknownTag{"", kEventKindUnknown, {}};

}  // namespace

std::string_view EventReader::adapter_of(const int32_t* row) const {
  const char* start = reinterpret_cast<const char*>(reader_.bytes(0));
  return {start + row[kEventRowAdapterAt], static_cast<size_t>(row[kEventRowAdapterBytes])};
}

void EventReader::note(std::string_view text, int32_t* at, int32_t* bytes) const {
  *bytes = static_cast<int32_t>(text.size());
  *at = text.empty() ? 0 : static_cast<int32_t>(reinterpret_cast<const uint8_t*>(text.data()) - reader_.bytes(0));
}

// The tag of an event whose header was read: the first item of a list, of a map the value of `type`. Only the former is
// passed over.
bool EventReader::read_tag(const MsgpackValue& header, const EventTag** tag) {
  const bool by_name = header.kind == MsgpackKind::kMap;
  const uint32_t start = reader_.at();
  bool found = !by_name && header.size > 0;
  for (uint32_t i = 0; by_name && i < header.size && !found; i++) {
    std::string_view key;
    if (!reader_.next_key(&key)) return false;
    found = key == "type";
    if (!found && !reader_.skip(1)) return false;
  }
  MsgpackValue value;
  if (!found || !reader_.next_of(MsgpackKind::kText, &value)) return false;
  *tag = &kUnknownTag;
  for (const EventTag& known : kTags) {
    if (known.name == reader_.text(value)) *tag = &known;
  }
  if (by_name) reader_.go_to(start);
  return true;
}

bool EventReader::read(uint32_t first_block, uint32_t first_token, uint32_t first_media, Event* event) {
  MsgpackValue header;
  if (!reader_.next(&header)) return false;
  const bool by_name = header.kind == MsgpackKind::kMap;
  const EventTag* tag = nullptr;
  if (!by_name && header.kind != MsgpackKind::kList) return false;
  if (!read_tag(header, &tag)) return false;
  int32_t* row = event->row;
  row[kEventRowKind] = tag->kind;
  row[kEventRowGroup] = -1;
  row[kEventRowFirstBlock] = static_cast<int32_t>(first_block);
  row[kEventRowFirstToken] = static_cast<int32_t>(first_token);
  row[kEventRowFirstMedia] = static_cast<int32_t>(first_media);
  for (uint32_t i = by_name ? 0 : 1; i < header.size; i++) {
    EventField field = EventField::kUnknown;
    if (by_name) {
      std::string_view key;
      if (!reader_.next_key(&key)) return false;
      for (const NamedField& known : tag->fields) {
        if (known.name == key) field = known.field;
      }
    } else if (i <= tag->fields.size()) {
      field = tag->fields[i - 1].field;
    }
    if (!read_field(field, event)) return false;
  }
  const bool is_store = tag->kind == kEventKindStore;
  if ((is_store || tag->kind == kEventKindRemove) && !event->has_hashes) return false;
  if (is_store && (!event->has_tokens || row[kEventRowBlockSize] == 0)) return false;
  row[kEventRowHasAdapterId] = event->has_adapter_id && row[kEventRowAdapterBytes] == 0 ? 1 : 0;
  if (event->extra_keys_at == 0) return true;
  const uint32_t end = reader_.at();
  reader_.go_to(event->extra_keys_at);
  if (!read_extra_keys(event)) return false;
  reader_.go_to(end);
  return true;
}

bool EventReader::read_field(EventField field, Event* event) {
  int32_t* row = event->row;
  switch (field) {
    case EventField::kHashes:
      return read_hashes(event);
    case EventField::kTokens:
      return read_tokens(event);
    case EventField::kParent:
      std::memset(event->parent, 0, sizeof event->parent);
      row[kEventRowHasParent] = reader_.skip_nil() ? 0 : 1;
      return row[kEventRowHasParent] == 0 || read_hash(event->parent);
    case EventField::kBlockSize:
      return read_number(1, row + kEventRowBlockSize);
    case EventField::kAdapterId: {
      event->has_adapter_id = !reader_.skip_nil();
      MsgpackValue id;
      return !event->has_adapter_id || reader_.next_of(MsgpackKind::kInteger, &id);
    }
    case EventField::kAdapter: {
      std::string_view name;
      if (!reader_.next_text(&name)) return false;
      note(name, row + kEventRowAdapterAt, row + kEventRowAdapterBytes);
      return true;
    }
    case EventField::kMedium:
      return read_medium(row + kEventRowTier);
    case EventField::kExtraKeys:
      // Read at the end, when the adapter is known, whose name is among them.
      event->extra_keys_at = reader_.at();
      return reader_.skip(1);
    case EventField::kGroup:
      row[kEventRowGroup] = -1;
      return reader_.skip_nil() || read_number(0, row + kEventRowGroup);
    case EventField::kGroupKind:
      return read_group_kind(row + kEventRowGroupKind);
    default:
      return reader_.skip(1);
  }
}

bool EventReader::read_number(int32_t least, int32_t* word) {
  uint32_t number = 0;
  if (!reader_.next_word(&number) || number > kWordMax || static_cast<int32_t>(number) < least) return false;
  *word = static_cast<int32_t>(number);
  return true;
}

bool EventReader::read_medium(int32_t* tier) {
  std::string_view name;
  if (!reader_.next_text(&name)) return false;
  *tier = name.data() == nullptr ? kEventTierDevice : kEventTierUnknown;
  for (const Medium& known : kMediums) {
    if (known.name == name) *tier = known.tier;
  }
  return true;
}

bool EventReader::read_group_kind(int32_t* kind) {
  std::string_view name;
  if (!reader_.next_text(&name)) return false;
  const bool full = std::find(std::begin(kFullGroups), std::end(kFullGroups), name) != std::end(kFullGroups);
  *kind = name.data() == nullptr ? kEventGroupUnsaid : full ? kEventGroupFull : kEventGroupOther;
  return true;
}

bool EventReader::read_hash(uint32_t* words) {
  MsgpackValue value;
  if (!reader_.next(&value)) return false;
  for (uint32_t i = 0; i < kEventHashWords; i++) words[i] = 0;
  if (value.kind == MsgpackKind::kInteger) {
    words[0] = static_cast<uint32_t>(value.bits);
    words[1] = static_cast<uint32_t>(value.bits >> 32);
    return true;
  }
  if (value.kind != MsgpackKind::kBinary || value.size == 0) return false;
  const uint8_t* last = reader_.bytes(value.at) + value.size - 1;
  const uint32_t bytes = std::min<uint32_t>(value.size, kEventHashWords * sizeof(uint32_t));
  for (uint32_t i = 0; i < bytes; i++) words[i / 4] |= uint32_t{*(last - i)} << i % 4 * 8;
  return true;
}

bool EventReader::read_hashes(Event* event) {
  MsgpackValue list;
  if (!reader_.next_of(MsgpackKind::kList, &list)) return false;
  const auto first = static_cast<uint32_t>(event->row[kEventRowFirstBlock]);
  if (list.size > kEventBlocksMax - first) return overflow();
  for (uint32_t i = 0; i < list.size; i++) {
    if (!read_hash(tables_.hashes + size_t{first + i} * kEventHashWords)) return false;
  }
  event->row[kEventRowBlocks] = static_cast<int32_t>(list.size);
  event->has_hashes = true;
  return true;
}

bool EventReader::read_tokens(Event* event) {
  MsgpackValue list;
  if (!reader_.next_of(MsgpackKind::kList, &list)) return false;
  const auto first = static_cast<uint32_t>(event->row[kEventRowFirstToken]);
  uint32_t* out = tables_.tokens + first;
  const uint32_t start = reader_.at();
  MsgpackValue item{};
  const bool pairs = list.size > 0 && reader_.next_of(MsgpackKind::kList, &item);
  if (list.size > 0 && reader_.truncated()) return false;
  reader_.go_to(start);
  const uint32_t count = list.size + (pairs ? 1 : 0);
  if (count > kEventTokensMax - first) return overflow();
  event->row[kEventRowTokens] = static_cast<int32_t>(count);
  event->row[kEventRowIsBigram] = pairs ? 1 : 0;
  event->has_tokens = true;
  if (pairs) return read_pairs(list.size, out);
  return reader_.next_words(out, count);
}

// Ids in pairs with the next one each: the first of all pairs, then the second of the last.
bool EventReader::read_pairs(uint32_t count, uint32_t* out) {
  for (uint32_t i = 0; i < count; i++) {
    MsgpackValue pair;
    if (!reader_.next_of(MsgpackKind::kList, &pair) || pair.size != 2) return false;
    if (!reader_.next_word(out + i) || !reader_.next_word(out + i + 1)) return false;
  }
  return true;
}

// A list with an entry for each block: nil, or a list of what else tells it from a block of the same ids.
bool EventReader::read_extra_keys(Event* event) {
  MsgpackValue list;
  if (reader_.skip_nil()) return true;
  if (!reader_.next_of(MsgpackKind::kList, &list)) return false;
  for (uint32_t block = 0; block < list.size; block++) {
    MsgpackValue items;
    if (reader_.skip_nil()) continue;
    if (!reader_.next_of(MsgpackKind::kList, &items)) return false;
    for (uint32_t i = 0; i < items.size; i++) {
      if (!read_extra_key(block, event)) return false;
    }
  }
  return true;
}

// The name of the adapter, a medium (with its offset in a list, or alone), or the salt; anything else means nothing here.
bool EventReader::read_extra_key(uint32_t block, Event* event) {
  int32_t* row = event->row;
  const uint32_t start = reader_.at();
  MsgpackValue item;
  if (!reader_.next(&item)) return false;
  if (item.kind == MsgpackKind::kText) {
    const std::string_view text = reader_.text(item);
    if (text.empty() || text == adapter_of(row)) return true;
    if (is_digest(text)) return add_media(block, text, event);
    if (block == 0) note(text, row + kEventRowSaltAt, row + kEventRowSaltBytes);
    return true;
  }
  MsgpackValue name;
  if (item.kind == MsgpackKind::kList && item.size == 2) {
    if (!reader_.next(&name)) return false;
    if (name.kind == MsgpackKind::kText) return reader_.skip(1) && add_media(block, reader_.text(name), event);
  }
  reader_.go_to(start);
  return reader_.skip(1);
}

bool EventReader::add_media(uint32_t block, std::string_view text, Event* event) {
  int32_t* row = event->row;
  if (text.empty() || block >= static_cast<uint32_t>(row[kEventRowBlocks])) return true;
  const auto index = static_cast<uint32_t>(row[kEventRowFirstMedia] + row[kEventRowMedia]);
  if (index == kEventMediaMax) return overflow();
  row[kEventRowMedia]++;
  const uint64_t hash = media_hash(text);
  uint32_t* words = tables_.media + size_t{index} * kEventMediaWords;
  words[0] = block;
  words[1] = static_cast<uint32_t>(hash);
  words[2] = static_cast<uint32_t>(hash >> 32);
  return true;
}

}  // namespace millrace
