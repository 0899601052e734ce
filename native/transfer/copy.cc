// Copies of runs, plain and with streaming stores, in slices that can be taken up again, with checksums on the way. See copy.h.
#include "copy.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "crc32c.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define MILLRACE_STREAMS 1
#endif

namespace millrace::kv {
namespace {

// A stretch is copied in parts of this size, and while one is stored the next is prefetched: far enough ahead to hide the
// memory's latency, and small enough to be in the first-level cache still when its turn comes. Measured with blocks of
// 16 KiB in pages of 4 KiB, ratio to memcpy at 4 and 256 MiB: parts of 4 KiB 1.10 and 1.15, 8 KiB 1.22 and 1.33, 16 KiB 1.30
// and 1.37.
constexpr uint64_t kPartBytes = 16'384;
// Pieces up to this size are copied by a loop over the run instead of one call each.
constexpr uint64_t kSmallBytes = 1024;
// Smaller ones than this gain nothing from streaming (0.80 of memcpy at 128 bytes, 0.92 at 256, 1.09 at 512).
constexpr uint64_t kStreamPieceBytes = 512;
constexpr uint64_t kLineBytes = 64;

// From how many bytes on an operation streams, by who reads next. With nobody reading it gains at 1 MiB already (1.19); with a
// reader at once it loses at 4 MiB (0.80 of memcpy) and 16 MiB (0.93), and gains from 64 MiB on (1.06), where the bytes would
// not stay in a cache anyway.
constexpr uint64_t kStreamLaterBytes = uint64_t{256} << 10;
constexpr uint64_t kStreamUnknownBytes = uint64_t{32} << 20;
constexpr uint64_t kStreamSoonBytes = uint64_t{64} << 20;

struct Strided {
  uint8_t* target;
  const uint8_t* source;
  uint64_t length;
  uint64_t target_stride;
  uint64_t source_stride;
  uint32_t count;
};

void copy_strided_plain(const Strided& run) {
  for (uint32_t piece = 0; piece < run.count; piece++) {
    std::memcpy(run.target + piece * run.target_stride, run.source + piece * run.source_stride, run.length);
  }
}

struct Kernels {
  // `length` bytes, while the lines of `ahead` are prefetched; a store fence is left to the caller.
  void (*stream)(uint8_t* target, const uint8_t* source, uint64_t length, const uint8_t* ahead, uint64_t ahead_length);
  // Whole lines of small pieces; targets begin on lines.
  void (*stream_strided)(const Strided& run);
};

#if MILLRACE_STREAMS

// Lines that a piece of a strided run is prefetched ahead of its copy.
constexpr uint32_t kPiecesAhead = 16;

__attribute__((target("avx512f"))) void stream_avx512(uint8_t* target, const uint8_t* source, uint64_t length,
                                                      const uint8_t* ahead, uint64_t ahead_length) {
  const uint64_t head = std::min<uint64_t>(-reinterpret_cast<uintptr_t>(target) % kLineBytes, length);
  if (head > 0) std::memcpy(target, source, head);
  uint64_t at = head;
  for (; at + kLineBytes <= length; at += kLineBytes) {
    if (at < ahead_length) _mm_prefetch(reinterpret_cast<const char*>(ahead + at), _MM_HINT_T0);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target + at), _mm512_loadu_si512(source + at));
  }
  if (at < length) std::memcpy(target + at, source + at, length - at);
}

__attribute__((target("avx512f"))) void stream_strided_avx512(const Strided& run) {
  for (uint32_t piece = 0; piece < run.count; piece++) {
    const uint8_t* source = run.source + piece * run.source_stride;
    uint8_t* target = run.target + piece * run.target_stride;
    const bool has_ahead = piece + kPiecesAhead < run.count;
    const uint8_t* ahead = source + (has_ahead ? kPiecesAhead * run.source_stride : 0);
    for (uint64_t at = 0; at < run.length; at += kLineBytes) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + at), _MM_HINT_T0);
      _mm512_stream_si512(reinterpret_cast<__m512i*>(target + at), _mm512_loadu_si512(source + at));
    }
  }
}

__attribute__((target("avx2"))) void store_line_avx2(uint8_t* target, const uint8_t* source) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 32));
  _mm256_stream_si256(reinterpret_cast<__m256i*>(target), low);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(target + 32), high);
}

__attribute__((target("avx2"))) void stream_avx2(uint8_t* target, const uint8_t* source, uint64_t length,
                                                 const uint8_t* ahead, uint64_t ahead_length) {
  const uint64_t head = std::min<uint64_t>(-reinterpret_cast<uintptr_t>(target) % kLineBytes, length);
  if (head > 0) std::memcpy(target, source, head);
  uint64_t at = head;
  for (; at + kLineBytes <= length; at += kLineBytes) {
    if (at < ahead_length) _mm_prefetch(reinterpret_cast<const char*>(ahead + at), _MM_HINT_T0);
    store_line_avx2(target + at, source + at);
  }
  if (at < length) std::memcpy(target + at, source + at, length - at);
}

__attribute__((target("avx2"))) void stream_strided_avx2(const Strided& run) {
  for (uint32_t piece = 0; piece < run.count; piece++) {
    const uint8_t* source = run.source + piece * run.source_stride;
    uint8_t* target = run.target + piece * run.target_stride;
    const bool has_ahead = piece + kPiecesAhead < run.count;
    const uint8_t* ahead = source + (has_ahead ? kPiecesAhead * run.source_stride : 0);
    for (uint64_t at = 0; at < run.length; at += kLineBytes) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + at), _MM_HINT_T0);
      store_line_avx2(target + at, source + at);
    }
  }
}

// What this processor can do; null functions where it cannot stream.
Kernels find_kernels() {
  if (__builtin_cpu_supports("avx512f")) return {stream_avx512, stream_strided_avx512};
  if (__builtin_cpu_supports("avx2")) return {stream_avx2, stream_strided_avx2};
  return {nullptr, nullptr};
}

// Streaming stores are ordered against nothing else until this.
void fence_stores() { _mm_sfence(); }

#else

Kernels find_kernels() { return {nullptr, nullptr}; }
void fence_stores() {}

#endif

const Kernels& kernels() {
  static const Kernels found = find_kernels();
  return found;
}

}  // namespace

CopyPath choose_path(uint64_t bytes, Reader reader) {
  if (kernels().stream == nullptr) return CopyPath::kPlain;
  uint64_t least = kStreamUnknownBytes;
  switch (reader) {
    case Reader::kLater: least = kStreamLaterBytes; break;
    case Reader::kUnknown: break;
    case Reader::kSoon: least = kStreamSoonBytes; break;
  }
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
      verified_(runs),
      source_(source),
      target_(target),
      path_(kernels().stream == nullptr ? CopyPath::kPlain : path),
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
    kernels().stream_strided(strided);
  } else {
    copy_strided_plain(strided);
  }
  cursor_.advance_pieces(pieces);
  return run.length * pieces;
}

uint64_t Copy::copy_stretch(uint64_t bytes_most) {
  const bool is_checked_run = is_checked(cursor_.run());
  const bool is_part = path_ == CopyPath::kStream || is_checked_run;
  // Parts end on lines of the target, so that only the first and the last of a piece have a broken one.
  const uint64_t broken = reinterpret_cast<uintptr_t>(target_ + cursor_.peek(1).target) % kLineBytes;
  const Stretch stretch = cursor_.peek(is_part ? kPartBytes - broken : bytes_most);
  cursor_.advance(stretch.length);
  const uint8_t* source = source_ + stretch.source;
  // While it is on its way through the cache for the copy.
  if (is_checked_run) read_crc_ = crc32c(read_crc_, source, stretch.length);
  if (path_ == CopyPath::kPlain) {
    std::memcpy(target_ + stretch.target, source, stretch.length);
  } else {
    const Stretch next = cursor_.at_end() ? Stretch{} : cursor_.peek(kPartBytes);
    kernels().stream(target_ + stretch.target, source, stretch.length, source_ + next.source, next.length);
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
  return cursor_.at_end();
}

bool Copy::verify_step(uint64_t bytes_most) {
  uint64_t seen = 0;
  while (seen < bytes_most && !verified_.at_end()) {
    if (!is_checked(verified_.run())) {
      verified_.skip_run();
      continue;
    }
    const Stretch stretch = verified_.peek(bytes_most - seen);
    written_crc_ = crc32c(written_crc_, target_ + stretch.target, stretch.length);
    verified_.advance(stretch.length);
    seen += stretch.length;
  }
  return verified_.at_end();
}

}  // namespace millrace::kv
