// Reservation of load: see reserve.h.
#include "reserve.h"

#include "millrace/load_descriptor.h"

namespace millrace {
namespace {

// The words are shared with JavaScript's Atomics, which are sequentially consistent; so are these.
uint32_t load_word(const uint32_t* word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
void store_word(uint32_t* word, uint32_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }
void add_to_word(uint32_t* word, uint32_t value) { __atomic_fetch_add(word, value, __ATOMIC_SEQ_CST); }
bool compare_and_set(uint32_t* word, uint32_t expected, uint32_t value) {
  return __atomic_compare_exchange_n(word, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

// Stops at 0: the line may have been zeroed for a new worker since the addition that this undoes.
void subtract_from_word(uint32_t* word, uint32_t value) {
  uint32_t seen = load_word(word);
  while (!compare_and_set(word, seen, seen > value ? seen - value : 0)) seen = load_word(word);
}

constexpr uint32_t kStateMask = (uint32_t{1} << kLedgerGenerationShift) - 1;
constexpr uint32_t kGenerationMax = (uint32_t{1} << (32 - kReservationIndexBits)) - 1;

// 1 to 2^12 - 1, so that no reservation id is 0.
uint32_t next_generation(uint32_t last) { return last >= kGenerationMax ? 1 : last + 1; }

uint32_t state_word(uint32_t generation, uint32_t state) { return generation << kLedgerGenerationShift | state; }

struct Claim {
  int64_t index;
  uint32_t generation;
};

// Claims a free entry of the range; index -1 when there is none.
Claim claim_entry(const LoadSegments& segments, const ReserveRequest& request) {
  uint32_t offset = request.cursor % request.entry_count;
  for (uint32_t tried = 0; tried < request.entry_count; tried++) {
    const uint32_t index = request.first_entry + offset;
    uint32_t* word = segments.ledger + uint64_t{index} * kLedgerEntryWords + kLedgerState;
    const uint32_t seen = load_word(word);
    if ((seen & kStateMask) == kLedgerStateFree) {
      const uint32_t generation = next_generation(seen >> kLedgerGenerationShift);
      if (compare_and_set(word, seen, state_word(generation, kLedgerStateClaimed))) return {index, generation};
    }
    offset = offset + 1 == request.entry_count ? 0 : offset + 1;
  }
  return {-1, 0};
}

}  // namespace

int64_t reserve(const LoadSegments& segments, const ReserveRequest& request) {
  uint32_t* line = segments.table + uint64_t{request.slot} * kLoadLineWords;
  if (load_word(line + kLoadGeneration) != request.slot_generation) return kReserveStaleSlot;
  const auto [index, generation] = claim_entry(segments, request);
  if (index < 0) return kReserveFull;

  uint32_t* entry = segments.ledger + static_cast<uint64_t>(index) * kLedgerEntryWords;
  store_word(entry + kLedgerOwner, request.owner_epoch);
  store_word(entry + kLedgerSlot, request.slot);
  store_word(entry + kLedgerSlotGeneration, request.slot_generation);
  store_word(entry + kLedgerPrefillTokens, request.prefill_tokens);
  store_word(entry + kLedgerBlocks, request.blocks);
  add_to_word(line + kLoadActivePrefillTokens, request.prefill_tokens);
  add_to_word(line + kLoadDecodeBlocks, request.blocks);
  add_to_word(line + kLoadRequests, 1);

  // The worker may have been replaced since the first check; then the sums belong to nobody and are taken back.
  if (load_word(line + kLoadGeneration) != request.slot_generation) {
    subtract_from_word(line + kLoadActivePrefillTokens, request.prefill_tokens);
    subtract_from_word(line + kLoadDecodeBlocks, request.blocks);
    subtract_from_word(line + kLoadRequests, 1);
    store_word(entry + kLedgerState, state_word(generation, kLedgerStateFree));
    return kReserveStaleSlot;
  }
  store_word(entry + kLedgerState, state_word(generation, kLedgerStatePrefill));
  return (int64_t{generation} << kReservationIndexBits) | index;
}

}  // namespace millrace
