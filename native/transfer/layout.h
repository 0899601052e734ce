// What the memory of a pool means (K1): where the bytes of a block lie, and which tokens, heads and layers they are. Two
// sides exchange layouts once, at the handshake, and then speak of block numbers only. Values; no memory, no threads.
//
// Every kind comes down to planes. A plane is one (layer, K or V) of all blocks: block b of plane p begins at
// `planes[p].base + b * planes[p].block_stride` and has `plane_bytes` bytes there, in `inner` order:
//
//     layer-major    plane 0: [block 0][block 1]…   plane 1: [block 0][block 1]…        (vLLM: one tensor per layer)
//     block-major    block 0: [plane 0][plane 1]…   block 1: [plane 0][plane 1]…        (TensorRT-LLM, cross-layer vLLM)
//     NHD            [token][head][dim]             HND            [head][token][dim]
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "status.h"

namespace millrace::kv {

enum class LayoutKind : uint8_t { kPagedKv = 0, kTensorList = 1, kOpaque = 2 };
enum class BlockOrder : uint8_t { kLayerMajor = 0, kBlockMajor = 1 };
enum class InnerOrder : uint8_t { kNhd = 0, kHnd = 1 };
// kSeparate: K of all blocks, then V of all blocks ([2, B, …]; block-major: K of all layers, then V); kAdjacent: K and V of
// a layer side by side in each block ([B, 2, …]); kJoined: one vector that is both (MLA), the same on every TP rank.
enum class KvSplit : uint8_t { kSeparate = 0, kAdjacent = 1, kJoined = 2 };

// Limits of what is accepted from a caller or a peer.
inline constexpr uint32_t kLayersMax = 1024;
inline constexpr uint32_t kHeadsMax = 4096;
inline constexpr uint32_t kHeadDimMax = 8192;
inline constexpr uint32_t kBlockTokensMax = 65'536;
inline constexpr uint32_t kBlocksMax = 1u << 28;
inline constexpr uint32_t kModelBytesMax = 256;

// Shape of one rank's part of the KV cache.
struct PagedKvShape {
  uint32_t layers = 0;
  uint32_t block_tokens = 0;
  // Of this rank, and of the whole model: `heads * tp_size` unless heads are replicated.
  uint32_t heads = 0;
  uint32_t heads_total = 0;
  uint32_t head_dim = 0;
  uint32_t element_bytes = 0;
  uint32_t tp_rank = 0;
  uint32_t tp_size = 1;
  BlockOrder block_order = BlockOrder::kLayerMajor;
  InnerOrder inner_order = InnerOrder::kNhd;
  KvSplit kv_split = KvSplit::kSeparate;
};

struct Plane {
  // Bytes from the pool's first byte to block 0.
  uint64_t base = 0;
  uint64_t block_stride = 0;
};

// Immutable once made.
class Layout {
 public:
  // Each checks its limits and that all blocks lie inside `pool_bytes`; on failure `error` names the field, the value and
  // the allowed range.
  static Status paged_kv(const PagedKvShape& shape, uint32_t blocks, uint64_t pool_bytes, const std::string& model,
                         Layout* out, std::string* error);
  // Planes given by hand, such as one tensor per layer at addresses of its own; `shape` says what a plane holds and its
  // block_order is not read.
  static Status tensor_list(const PagedKvShape& shape, const std::vector<Plane>& planes, uint32_t blocks,
                            uint64_t pool_bytes, const std::string& model, Layout* out, std::string* error);
  // Bytes without meaning: block b at b * stride.
  static Status opaque(uint64_t block_bytes, uint64_t stride, uint32_t blocks, uint64_t pool_bytes, Layout* out,
                       std::string* error);

  LayoutKind kind() const { return kind_; }
  const PagedKvShape& shape() const { return shape_; }
  const std::vector<Plane>& planes() const { return planes_; }
  uint64_t plane_bytes() const { return plane_bytes_; }
  uint64_t block_bytes() const { return plane_bytes_ * planes_.size(); }
  uint32_t blocks() const { return blocks_; }
  const std::string& model() const { return model_; }
  uint64_t pool_bytes() const { return pool_bytes_; }
  // The first head of this rank by its number in the whole model. Ranks share heads where there are more ranks than heads.
  uint32_t first_head() const;
  // 2 for K and V, 1 where they are joined or the bytes have no meaning.
  uint32_t parts() const { return kind_ == LayoutKind::kOpaque || shape_.kv_split == KvSplit::kJoined ? 1 : 2; }
  // XXH3-64 over every field that says what a plane holds and in which order: planes of the same rank, layer and part can
  // be copied as they are when the hashes are equal. The number of blocks, where planes begin and the rank are not in it.
  uint64_t hash() const { return hash_; }

  // As a blob of little-endian words, and back: decode makes every check that the makers make, takes exactly `size` bytes
  // and trusts none of them.
  void encode(std::vector<uint8_t>* out) const;
  static Status decode(const uint8_t* bytes, size_t size, Layout* out, std::string* error);

 private:
  static Status make(LayoutKind kind, const PagedKvShape& shape, std::vector<Plane> planes, uint64_t plane_bytes,
                     uint32_t blocks, uint64_t pool_bytes, const std::string& model, Layout* out, std::string* error);
  LayoutKind kind_ = LayoutKind::kOpaque;
  PagedKvShape shape_;
  std::vector<Plane> planes_;
  uint64_t plane_bytes_ = 0;
  uint32_t blocks_ = 0;
  uint64_t pool_bytes_ = 0;
  std::string model_;
  uint64_t hash_ = 0;
};

}  // namespace millrace::kv
