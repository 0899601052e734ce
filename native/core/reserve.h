// Reservation of load on a worker slot (R4), over the shared load table and ledger of src/router/load-descriptor.ts.
// Called by a pool thread inside decide(); one call that nothing can interrupt, because the thread may be terminated
// between any two JavaScript statements and would leave half a reservation behind. Release is TypeScript (ledger.ts).
#pragma once

#include <cstdint>

namespace millrace {

struct LoadSegments {
  uint32_t* table;
  uint32_t* ledger;
  uint32_t lines;
  uint32_t entries;
};

// The caller has checked that `slot` and the entry range lie inside the segments and that `entry_count` is not 0.
struct ReserveRequest {
  uint32_t first_entry;
  uint32_t entry_count;
  uint32_t cursor;
  uint32_t slot;
  uint32_t slot_generation;
  uint32_t prefill_tokens;
  uint32_t blocks;
  uint32_t owner_epoch;
};

inline constexpr int64_t kReserveFull = 0;
inline constexpr int64_t kReserveStaleSlot = -1;

// Returns the reservation id (> 0), kReserveFull or kReserveStaleSlot; with these two nothing is held.
int64_t reserve(const LoadSegments& segments, const ReserveRequest& request);

}  // namespace millrace
