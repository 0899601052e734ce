// The place in a list of runs to which the bytes of a two-sided transport have come, on one of its sides. Whoever sends and
// whoever receives walks the same list in the same order, each on its own side of it. Progress thread only.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>
#include <vector>

#include "plan.h"

namespace millrace::kv {

class TcpCursor {
 public:
  // Of the runs' sources, or of their targets, in the pool at `base`.
  void start(const std::vector<Run>& runs, uint8_t* base, bool is_target);
  bool is_started() const { return !pieces_.empty(); }

  // The next bytes, at most `bytes` of them in as many pieces as `out` has room for; stays where it is. Returns the number
  // of pieces, and their bytes in `*taken`.
  size_t peek(uint64_t bytes, std::span<iovec> out, uint64_t* taken) const;
  void advance(uint64_t bytes);
  // Copies to or from the next bytes, and goes on.
  void scatter(const uint8_t* from, uint64_t bytes);
  void gather(uint8_t* to, uint64_t bytes);

  // Bytes of a piece, on average.
  uint64_t piece_bytes() const { return piece_bytes_; }
  // Drops the list.
  void clear();

 private:
  struct Piece {
    uint8_t* address;
    uint64_t length;
    uint64_t stride;
    uint32_t count;
  };
  template <class Copy>
  void walk(uint64_t bytes, Copy copy);

  std::vector<Piece> pieces_;
  size_t piece_ = 0;
  uint32_t repeat_ = 0;
  uint64_t offset_ = 0;
  uint64_t piece_bytes_ = 0;
};

}  // namespace millrace::kv
