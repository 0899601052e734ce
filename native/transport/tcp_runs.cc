#include "tcp_runs.h"

#include <algorithm>
#include <cstring>

namespace millrace::kv {

void TcpCursor::start(const std::vector<Run>& runs, uint8_t* base, bool is_target) {
  clear();
  pieces_.reserve(runs.size());
  uint64_t bytes = 0;
  uint64_t pieces = 0;
  for (const Run& run : runs) {
    Piece piece{base + (is_target ? run.target : run.source), run.length, is_target ? run.target_stride : run.source_stride,
                run.count};
    // Side by side on this side, whatever they are on the other.
    if (piece.stride == piece.length) {
      piece.length *= piece.count;
      piece.count = 1;
    }
    bytes += piece.length * piece.count;
    pieces += piece.count;
    pieces_.push_back(piece);
  }
  piece_bytes_ = pieces == 0 ? 0 : bytes / pieces;
}

size_t TcpCursor::peek(uint64_t bytes, std::span<iovec> out, uint64_t* taken) const {
  size_t used = 0;
  *taken = 0;
  size_t at = piece_;
  uint32_t repeat = repeat_;
  uint64_t offset = offset_;
  while (used < out.size() && *taken < bytes && at < pieces_.size()) {
    const Piece& piece = pieces_[at];
    const uint64_t length = std::min(piece.length - offset, bytes - *taken);
    out[used++] = {piece.address + repeat * piece.stride + offset, length};
    *taken += length;
    offset = 0;
    if (++repeat == piece.count) {
      repeat = 0;
      at++;
    }
  }
  return used;
}

template <class Copy>
void TcpCursor::walk(uint64_t bytes, Copy copy) {
  while (bytes > 0) {
    const Piece& piece = pieces_[piece_];
    const uint64_t length = std::min(piece.length - offset_, bytes);
    copy(piece.address + repeat_ * piece.stride + offset_, length);
    bytes -= length;
    offset_ += length;
    if (offset_ < piece.length) return;
    offset_ = 0;
    if (++repeat_ < piece.count) continue;
    repeat_ = 0;
    piece_++;
  }
}

void TcpCursor::advance(uint64_t bytes) {
  walk(bytes, [](uint8_t*, uint64_t) {});
}

void TcpCursor::scatter(const uint8_t* from, uint64_t bytes) {
  walk(bytes, [&](uint8_t* address, uint64_t length) {
    std::memcpy(address, from, length);
    from += length;
  });
}

void TcpCursor::gather(uint8_t* to, uint64_t bytes) {
  walk(bytes, [&](const uint8_t* address, uint64_t length) {
    std::memcpy(to, address, length);
    to += length;
  });
}

void TcpCursor::clear() {
  pieces_ = {};
  piece_ = 0;
  repeat_ = 0;
  offset_ = 0;
  piece_bytes_ = 0;
}

}  // namespace millrace::kv
