// Copies runs from one pool to another (K3): plain or streaming, in slices that can be resumed, checked on the way where that
// is wanted. No threads and no memory of its own; whoever made a Copy steps it, from one thread at a time.
//
// Plain is memcpy, which leaves the bytes in the cache for a reader who comes at once. Streaming writes around the cache
// and fetches what comes later in the list while it stores what comes now, which a memcpy cannot, as it does not know the
// list. What is checked always goes through the cache, where it is read again at once.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "copy_crc.h"
#include "plan.h"
#include "transport.h"

namespace millrace::kv {

enum class CopyPath : uint8_t { kPlain, kStream };

// The path for so many bytes in one operation. Always plain on processors without streaming stores of 32 bytes.
CopyPath choose_path(uint64_t bytes, Reader reader);

// Sum of the runs' bytes; kInvalid, with the run and the range, where one leaves its pool.
Status measure_runs(std::span<const Run> runs, uint64_t source_bytes, uint64_t target_bytes, uint64_t* bytes,
                    std::string* error);

// One stretch of bytes without a gap on either side.
struct Stretch {
  uint64_t source;
  uint64_t target;
  uint64_t length;
};

// Where in a list of runs: what lets a slice begin where the last one ended.
class RunCursor {
 public:
  explicit RunCursor(std::span<const Run> runs) : runs_(runs) {}
  bool at_end() const { return run_ == runs_.size(); }
  // The run that the next byte belongs to; not at the end.
  const Run& run() const { return runs_[run_]; }
  uint32_t piece() const { return piece_; }
  bool inside_piece() const { return byte_ > 0; }
  // The rest of the piece, at most `most` bytes; not at the end.
  Stretch peek(uint64_t most) const;
  // Past so many bytes of the piece, at most those that `peek` would show.
  void advance(uint64_t bytes);
  // Past so many whole pieces of the run; not inside a piece.
  void advance_pieces(uint32_t pieces);
  // Past the whole run, from its begin.
  void skip_run();

 private:
  std::span<const Run> runs_;
  size_t run_ = 0;
  uint32_t piece_ = 0;
  uint64_t byte_ = 0;
};

// How many runs are checked: those of one block in so many, 0 for none.
uint32_t check_every(Integrity integrity);

class Copy {
 public:
  // The runs and both memories stay until the copy is dropped.
  Copy(std::span<const Run> runs, const uint8_t* source, uint8_t* target, CopyPath path, Integrity integrity);

  // Copies on until `bytes_most` bytes or a little more have moved; true when all have. All bytes are visible to other
  // threads and processes that learn of it after this returned.
  bool step(uint64_t bytes_most);
  // kCorrupt when what the target held, shortly after it was written, is not what was read from the source. After the
  // last step.
  Status verdict() const { return is_same_ ? Status::kOk : Status::kCorrupt; }
  uint64_t bytes() const { return bytes_; }

 private:
  bool is_checked(const Run& run) const { return every_ > 0 && run.block % every_ == 0; }
  uint64_t copy_small_pieces(uint64_t bytes_most);
  uint64_t copy_stretch(uint64_t bytes_most);
  Ahead look_ahead(uint64_t length);

  RunCursor cursor_;
  // So many bytes further on in the list.
  RunCursor ahead_;
  uint64_t lead_ = 0;
  const uint8_t* source_;
  uint8_t* target_;
  CopyPath path_;
  uint32_t every_;
  CheckedCopy checked_;
  bool is_same_ = true;
  uint64_t bytes_ = 0;
};

}  // namespace millrace::kv
