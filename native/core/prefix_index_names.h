// A fixed open-addressing map of the prefix index's writer: (64-bit hash, slot) -> 64-bit value, 16 bytes an entry. Used
// for the engines' block hashes and for the expiry of predictions. Only the writer thread touches it.
//
// An entry stores slot, displacement from its home and 41 bits of the hash; its place tells the other bits, so two hashes
// are taken for one only when about 64 bits of them agree. Deletion shifts the run back: there are no tombstones.
#pragma once

#include <cstdint>

namespace millrace {

class NameMap {
 public:
  NameMap(uint32_t* words, uint32_t capacity) : words_(words), capacity_(capacity) {}

  // The value, or nullptr. The pointer holds until the next change of the map.
  uint64_t* find(uint64_t hash, uint32_t slot) const;
  // Sets the value; `*added` says whether the key is new. False when the run is too long for one more entry.
  bool put(uint64_t hash, uint32_t slot, uint64_t value, bool* added);
  bool erase(uint64_t hash, uint32_t slot);

  uint32_t capacity() const { return capacity_; }
  // The slot of the entry at a place, 0 when the place is free.
  uint32_t slot_at(uint32_t place) const { return static_cast<uint32_t>(entry(place)[0] >> kSlotShift); }
  uint64_t value_at(uint32_t place) const { return entry(place)[1]; }
  // Frees a place; the next entry of the run may move into it.
  void erase_at(uint32_t place);
  void prefetch(uint64_t hash) const { __builtin_prefetch(entry(home_of(hash)), 1); }

 private:
  static constexpr uint32_t kRestBits = 41;
  static constexpr uint32_t kSlotShift = 51;
  static constexpr uint32_t kDisplacementMax = (1u << (kSlotShift - kRestBits)) - 1;

  uint64_t* entry(uint32_t place) const { return reinterpret_cast<uint64_t*>(words_) + uint64_t{place} * 2; }
  uint32_t home_of(uint64_t hash) const { return static_cast<uint32_t>(((hash >> 32) * capacity_) >> 32); }
  uint32_t after(uint32_t place) const { return place + 1 == capacity_ ? 0 : place + 1; }
  static uint64_t tag(uint64_t hash, uint32_t slot, uint32_t displacement) {
    return uint64_t{slot} << kSlotShift | uint64_t{displacement} << kRestBits | (hash & ((uint64_t{1} << kRestBits) - 1));
  }
  // The place of the key, or capacity_.
  uint32_t place_of(uint64_t hash, uint32_t slot) const;

  uint32_t* words_;
  uint32_t capacity_;
};

}  // namespace millrace
