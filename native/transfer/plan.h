// From two block lists to strided runs (K2). The part that depends on the two layouts alone (which bytes of a plane go
// where) is made once per pair and kept; a plan for given blocks merges neighbours. Pure; the two sides of a two-sided
// transport make the same plan from the same lists, so that no descriptor crosses the wire.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "layout.h"

namespace millrace::kv {

// `count` pieces of `length` bytes: piece i from source + i * source_stride to target + i * target_stride. Offsets are
// bytes in their pools.
struct Run {
  uint64_t source;
  uint64_t target;
  uint64_t length;
  uint64_t source_stride;
  uint64_t target_stride;
  uint32_t count;
  // Index in the block lists of the first block that this run belongs to; runs of one block may be several.
  uint32_t block;
};

// What part of each block: all by default. Layers by number; heads by their number in the whole model.
struct Part {
  uint32_t first_layer = 0;
  uint32_t layers = 0;  // 0: all
  uint32_t first_head = 0;
  uint32_t heads = 0;  // 0: those that both ranks have
};

// How planes of one layout become planes of another. Shared by all plans between them; immutable.
class Transform {
 public:
  // kMismatch with both values named in `error` where no strided copy does it: other model, dtype, head_dim, layers,
  // block_tokens, or no common head. NHD to HND, other block orders, K/V splits and TP degrees are possible.
  static Status make(const Layout& source, const Layout& target, const Part& part,
                     std::shared_ptr<const Transform>* out, std::string* error);

  // What of one or more neighbouring planes goes where, in every block alike: `count` rows of `length` bytes.
  struct Piece {
    uint64_t source;
    uint64_t target;
    uint64_t source_block_stride;
    uint64_t target_block_stride;
    uint64_t length;
    uint64_t source_stride;
    uint64_t target_stride;
    uint32_t count;
  };
  // In the order in which `lower` goes through them.
  const std::vector<Piece>& pieces() const { return pieces_; }

  // Bytes of one block that are copied, and in how many runs when no neighbours merge.
  uint64_t bytes_per_block() const { return bytes_per_block_; }
  uint32_t runs_per_block() const { return static_cast<uint32_t>(pieces_.size()); }

  // Appends the runs of `count` blocks: source_blocks[i] to target_blocks[i], plane by plane. kInvalid,
  // and nothing appended, for a block outside its pool or one that is twice among the targets. Neighbours on both sides
  // become one run. The order of the runs is the order of the bytes on a two-sided wire.
  Status lower(const uint32_t* source_blocks, const uint32_t* target_blocks, uint32_t count, std::vector<Run>* out,
               std::string* error) const;

 private:
  void add(const Piece& piece);

  std::vector<Piece> pieces_;
  uint64_t bytes_per_block_ = 0;
  uint32_t source_blocks_ = 0;
  uint32_t target_blocks_ = 0;
};

}  // namespace millrace::kv
