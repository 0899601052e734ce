// Quarantine as one object (K4): who will touch the bytes of blocks counts itself in with their generations, and out when
// its bytes are quiet. The agent does it for the local blocks of every transfer, and transports for what they do on behalf
// of a peer. Any thread, one at a time for each object.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "pool.h"
#include "status.h"
#include "transport.h"

namespace millrace::kv {

// Whether a peer may work on a block in this state, in its direction: a ready block has readers who trust that it does not
// change, and in a reserved one there is nothing to read.
inline bool is_served(Direction direction, BlockState state) {
  return state == BlockState::kFilling || state == (direction == Direction::kWrite ? BlockState::kReserved : BlockState::kReady);
}

// Blocks of one pool with an operation of ours in flight. A pool without a table has no counts: then it only checks ranges.
class BlockHold {
 public:
  BlockHold() = default;
  BlockHold(BlockHold&& other) noexcept { *this = std::move(other); }
  BlockHold& operator=(BlockHold&& other) noexcept;
  BlockHold(const BlockHold&) = delete;
  ~BlockHold() { leave(); }

  // All or none. `generations` may be empty: those of now. kInvalid for a block outside the pool or lists of different
  // length, kStale where a block is free, in quarantine or of another generation.
  Status enter(Pool& pool, std::span<const uint32_t> blocks, std::span<const uint32_t> generations, std::string* error);

  // What a peer asks for: besides, where the pool has a table the generations must be given (kInvalid), and a peer may
  // write (Direction::kWrite, as it submits) only into blocks that are reserved or filling, and read only those that are
  // filling or ready (kNotAllowed).
  Status serve(Pool& pool, Direction direction, std::span<const uint32_t> blocks, std::span<const uint32_t> generations,
               std::string* error);

  // The bytes are quiet.
  void leave();

 private:
  BlockTable* table_ = nullptr;
  std::vector<uint32_t> blocks_;
};

}  // namespace millrace::kv
