// Copies of runs in slices that can be taken up again, and what is copied how. See copy.h.
#include "copy.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace millrace::kv {
namespace {

// A stretch is copied in parts of this size, and what lies as many bytes further on in the list is fetched meanwhile: far
// enough ahead to hide the memory's latency, and near enough to be in the first-level cache still when its turn comes.
// Measured with blocks of 16 KiB in pages of 4 KiB, ratio to memcpy at 4 and 256 MiB: 4 KiB 1.10 and 1.15, 8 KiB 1.22 and
// 1.33, 16 KiB 1.30 and 1.37.
constexpr uint64_t kPartBytes = 16'384;
// Pieces up to this size are copied by a loop over the run instead of one call each.
constexpr uint64_t kSmallBytes = 1024;
// Smaller ones than this gain nothing from streaming (0.80 of memcpy at 128 bytes, 0.92 at 256, 1.09 at 512).
constexpr uint64_t kStreamPieceBytes = 512;

// From how many bytes on an operation streams, by who reads next. With nobody reading it gains at 1 MiB already (1.3 times
// memcpy); where somebody reads at once, it and the reader together lose up to 4 MiB (0.78 at 1 MiB, 0.86 to 0.96 at 4 MiB)
// and gain from 16 MiB on (1.15 to 1.2), where the bytes would not stay in a cache anyway.
constexpr uint64_t kStreamLaterBytes = uint64_t{256} << 10;
constexpr uint64_t kStreamBytes = uint64_t{16} << 20;

void copy_pieces(const Strided& run) {
  for (uint32_t piece = 0; piece < run.count; piece++) {
    std::memcpy(run.target + piece * run.target_stride, run.source + piece * run.source_stride, run.length);
  }
}

}  // namespace

CopyPath choose_path(uint64_t bytes, Reader reader) {
  if (copy_lines().stream == nullptr) return CopyPath::kPlain;
  const uint64_t least = reader == Reader::kLater ? kStreamLaterBytes : kStreamBytes;
  return bytes >= least ? CopyPath::kStream : CopyPath::kPlain;
}

Status measure_runs(std::span<const Run> runs, uint64_t source_bytes, uint64_t target_bytes, uint64_t* bytes,
                    std::string* error) {
  // The end of the last piece, or UINT64_MAX where that does not fit.
  const auto end = [](uint64_t begin, const Run& run, uint64_t stride) {
    uint64_t last = 0;
    uint64_t at = 0;
    if (__builtin_mul_overflow(stride, uint64_t{run.count} - 1, &last) || __builtin_add_overflow(last, begin, &at) ||
        __builtin_add_overflow(at, run.length, &at)) {
      return UINT64_MAX;
    }
    return at;
  };
  uint64_t total = 0;
  for (size_t i = 0; i < runs.size(); i++) {
    const Run& run = runs[i];
    const bool has_bytes = run.count > 0 && run.length > 0;
    const uint64_t source_end = has_bytes ? end(run.source, run, run.source_stride) : UINT64_MAX;
    const uint64_t target_end = has_bytes ? end(run.target, run, run.target_stride) : UINT64_MAX;
    if (source_end > source_bytes || target_end > target_bytes) {
      const bool is_source = source_end > source_bytes;
      *error = "run " + std::to_string(i) + " must have bytes and end inside its " + (is_source ? "source" : "target") +
               " of " + std::to_string(is_source ? source_bytes : target_bytes) + " bytes; it begins at " +
               std::to_string(is_source ? run.source : run.target);
      return Status::kInvalid;
    }
    total += run.length * run.count;
  }
  *bytes = total;
  return Status::kOk;
}

Stretch RunCursor::peek(uint64_t most) const {
  const Run& run = runs_[run_];
  return {run.source + piece_ * run.source_stride + byte_, run.target + piece_ * run.target_stride + byte_,
          std::min(run.length - byte_, most)};
}

void RunCursor::advance(uint64_t bytes) {
  const Run& run = runs_[run_];
  byte_ += bytes;
  assert(byte_ <= run.length);
  if (byte_ < run.length) return;
  byte_ = 0;
  if (++piece_ < run.count) return;
  piece_ = 0;
  run_++;
}

void RunCursor::advance_pieces(uint32_t pieces) {
  assert(byte_ == 0 && piece_ + pieces <= runs_[run_].count);
  piece_ += pieces;
  if (piece_ < runs_[run_].count) return;
  piece_ = 0;
  run_++;
}

void RunCursor::skip_run() {
  assert(byte_ == 0 && piece_ == 0);
  run_++;
}

uint32_t check_every(Integrity integrity) {
  switch (integrity) {
    case Integrity::kOff: return 0;
    case Integrity::kSample: return kSampleBlocks;
    case Integrity::kFull: return 1;
  }
  return 1;
}

Copy::Copy(std::span<const Run> runs, const uint8_t* source, uint8_t* target, CopyPath path, Integrity integrity)
    : cursor_(runs),
      ahead_(runs),
      source_(source),
      target_(target),
      path_(copy_lines().stream == nullptr ? CopyPath::kPlain : path),
      every_(check_every(integrity)) {}

// As many whole pieces of the run as the slice takes, at least one.
uint64_t Copy::copy_small_pieces(uint64_t bytes_most) {
  const Run& run = cursor_.run();
  uint32_t pieces = run.count - cursor_.piece();
  if (pieces * run.length > bytes_most) pieces = static_cast<uint32_t>(std::max<uint64_t>(bytes_most / run.length, 1));
  const Stretch first = cursor_.peek(run.length);
  const Strided strided{target_ + first.target, source_ + first.source, run.length,
                        run.target_stride,      run.source_stride,      pieces};
  const bool is_lines = (reinterpret_cast<uintptr_t>(strided.target) | run.length | run.target_stride) % kLineBytes == 0;
  if (path_ == CopyPath::kStream && is_lines && run.length >= kStreamPieceBytes) {
    copy_lines().stream_strided(strided);
  } else {
    copy_pieces(strided);
  }
  cursor_.advance_pieces(pieces);
  lead_ = 0;
  return run.length * pieces;
}

// What is to be fetched while the next `length` bytes are copied.
Ahead Copy::look_ahead(uint64_t length) {
  if (lead_ == 0) ahead_ = cursor_;
  // Pieces of other sizes than those being copied make the lead uneven; what is missing is fetched at once.
  while (lead_ < kPartBytes && !ahead_.at_end()) {
    const Stretch stretch = ahead_.peek(kPartBytes - lead_);
    fetch_lines(source_ + stretch.source, stretch.length);
    ahead_.advance(stretch.length);
    lead_ += stretch.length;
  }
  if (ahead_.at_end()) return {};
  const Stretch next = ahead_.peek(length);
  ahead_.advance(next.length);
  lead_ += next.length;
  return {target_ + next.target, source_ + next.source, next.length};
}

uint64_t Copy::copy_stretch(uint64_t bytes_most) {
  const bool is_checked_run = is_checked(cursor_.run());
  // Parts end on lines of the target, so that only the first and the last of a piece have a broken one.
  const uint64_t broken = reinterpret_cast<uintptr_t>(target_ + cursor_.peek(1).target) % kLineBytes;
  const bool is_plain = path_ == CopyPath::kPlain && !is_checked_run;
  const Stretch stretch = cursor_.peek(is_plain ? bytes_most : kPartBytes - broken);
  const Ahead ahead = is_plain ? Ahead{} : look_ahead(stretch.length);
  cursor_.advance(stretch.length);
  lead_ -= std::min(lead_, stretch.length);
  uint8_t* const target = target_ + stretch.target;
  const uint8_t* const source = source_ + stretch.source;
  if (is_checked_run) {
    checked_.copy(target, source, stretch.length, ahead);
  } else if (path_ == CopyPath::kStream) {
    copy_lines().stream(target, source, stretch.length, ahead);
  } else {
    std::memcpy(target, source, stretch.length);
  }
  return stretch.length;
}

bool Copy::step(uint64_t bytes_most) {
  uint64_t moved = 0;
  while (moved < bytes_most && !cursor_.at_end()) {
    const Run& run = cursor_.run();
    const bool is_small = run.length <= kSmallBytes && run.count > 1 && !cursor_.inside_piece() && !is_checked(run);
    moved += is_small ? copy_small_pieces(bytes_most - moved) : copy_stretch(bytes_most - moved);
  }
  if (path_ == CopyPath::kStream) fence_stores();
  bytes_ += moved;
  if (!cursor_.at_end()) return false;
  is_same_ = checked_.is_same();
  return true;
}

}  // namespace millrace::kv
