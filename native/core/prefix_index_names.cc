// The writer's fixed hash map: see prefix_index_names.h.
#include "prefix_index_names.h"

namespace millrace {

uint32_t NameMap::place_of(uint64_t hash, uint32_t slot) const {
  uint32_t place = home_of(hash);
  for (uint32_t displacement = 0; displacement <= kDisplacementMax; displacement++) {
    const uint64_t seen = entry(place)[0];
    if (seen == 0) return capacity_;
    if (seen == tag(hash, slot, displacement)) return place;
    place = after(place);
  }
  return capacity_;
}

uint64_t* NameMap::find(uint64_t hash, uint32_t slot) const {
  const uint32_t place = place_of(hash, slot);
  return place == capacity_ ? nullptr : entry(place) + 1;
}

bool NameMap::put(uint64_t hash, uint32_t slot, uint64_t value, bool* added) {
  uint32_t place = home_of(hash);
  for (uint32_t displacement = 0; displacement <= kDisplacementMax; displacement++) {
    uint64_t* at = entry(place);
    const uint64_t wanted = tag(hash, slot, displacement);
    if (at[0] == 0 || at[0] == wanted) {
      *added = at[0] == 0;
      at[0] = wanted;
      at[1] = value;
      return true;
    }
    place = after(place);
  }
  return false;
}

bool NameMap::erase(uint64_t hash, uint32_t slot) {
  const uint32_t place = place_of(hash, slot);
  if (place == capacity_) return false;
  erase_at(place);
  return true;
}

void NameMap::erase_at(uint32_t place) {
  uint32_t hole = place;
  uint32_t distance = 0;
  for (uint32_t at = after(hole);; at = after(at)) {
    distance++;
    const uint64_t seen = entry(at)[0];
    const uint32_t displacement = static_cast<uint32_t>(seen >> kRestBits) & kDisplacementMax;
    if (seen == 0 || distance > kDisplacementMax) break;
    if (displacement < distance) continue;
    entry(hole)[0] = seen - (uint64_t{distance} << kRestBits);
    entry(hole)[1] = entry(at)[1];
    hole = at;
    distance = 0;
  }
  entry(hole)[0] = 0;
}

}  // namespace millrace
