// Makers of layouts with their checks, and their form on the wire: decode trusts no byte of a peer. See layout.h.
#include "layout.h"

#include <algorithm>

#include "words.h"

#define XXH_INLINE_ALL
#include "../third_party/xxhash.h"

namespace millrace::kv {
namespace {

constexpr uint32_t kBlobMagic = 0x31'4c'4b'4d;  // "MKL1": the version is in it
constexpr uint32_t kPlanesMax = kLayersMax * 2;
constexpr uint64_t kPoolBytesMax = uint64_t{1} << 46;
constexpr uint32_t kElementBytesMax = 16;

Status refuse(std::string* error, const std::string& field, uint64_t value, uint64_t least, uint64_t most) {
  *error = field + " must be from " + std::to_string(least) + " to " + std::to_string(most) + "; got " +
           std::to_string(value);
  return Status::kInvalid;
}

// The product, or more than any pool has.
uint64_t multiply(uint64_t a, uint64_t b) {
  uint64_t product;
  return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

Status check_shape(const PagedKvShape& shape, std::string* error) {
  const auto outside = [](uint64_t value, uint64_t most) { return value < 1 || value > most; };
  if (outside(shape.layers, kLayersMax)) return refuse(error, "layers", shape.layers, 1, kLayersMax);
  if (outside(shape.block_tokens, kBlockTokensMax))
    return refuse(error, "block_tokens", shape.block_tokens, 1, kBlockTokensMax);
  if (outside(shape.heads, kHeadsMax)) return refuse(error, "heads", shape.heads, 1, kHeadsMax);
  if (outside(shape.heads_total, kHeadsMax)) return refuse(error, "heads_total", shape.heads_total, 1, kHeadsMax);
  if (outside(shape.head_dim, kHeadDimMax)) return refuse(error, "head_dim", shape.head_dim, 1, kHeadDimMax);
  if (outside(shape.element_bytes, kElementBytesMax))
    return refuse(error, "element_bytes", shape.element_bytes, 1, kElementBytesMax);
  if (outside(shape.tp_size, kHeadsMax)) return refuse(error, "tp_size", shape.tp_size, 1, kHeadsMax);
  if (shape.tp_rank >= shape.tp_size) return refuse(error, "tp_rank", shape.tp_rank, 0, shape.tp_size - 1);
  if (shape.block_order > BlockOrder::kBlockMajor)
    return refuse(error, "block_order", static_cast<uint8_t>(shape.block_order), 0, 1);
  if (shape.inner_order > InnerOrder::kHnd)
    return refuse(error, "inner_order", static_cast<uint8_t>(shape.inner_order), 0, 1);
  if (shape.kv_split > KvSplit::kJoined) return refuse(error, "kv_split", static_cast<uint8_t>(shape.kv_split), 0, 2);
  const bool joined = shape.kv_split == KvSplit::kJoined;
  const bool divides = shape.heads_total % shape.tp_size == 0 || shape.tp_size % shape.heads_total == 0;
  const uint32_t expected = joined ? shape.heads_total : std::max(1u, shape.heads_total / shape.tp_size);
  if ((joined || divides) && shape.heads == expected) return Status::kOk;
  *error = "heads must be heads_total / tp_size, at least 1 (all of them where K and V are joined); got heads " +
           std::to_string(shape.heads) + ", heads_total " + std::to_string(shape.heads_total) + ", tp_size " +
           std::to_string(shape.tp_size);
  return Status::kInvalid;
}

uint64_t plane_bytes_of(const PagedKvShape& shape) {
  return uint64_t{shape.block_tokens} * shape.heads * shape.head_dim * shape.element_bytes;
}

// Bytes of two planes can be the same ones. Both lie inside the pool.
bool overlap(const Plane& a, const Plane& b, uint64_t plane_bytes, uint32_t blocks) {
  const auto end = [&](const Plane& plane) { return plane.base + (blocks - 1) * plane.block_stride + plane_bytes; };
  if (end(a) <= b.base || end(b) <= a.base) return false;
  if (a.block_stride != b.block_stride) return true;
  // Interleaved: each block of one lies in the gaps of the other.
  const uint64_t apart = (a.base > b.base ? a.base - b.base : b.base - a.base) % a.block_stride;
  return apart < plane_bytes || a.block_stride - apart < plane_bytes;
}

}  // namespace

uint32_t Layout::first_head() const {
  if (kind_ == LayoutKind::kOpaque || shape_.kv_split == KvSplit::kJoined) return 0;
  return static_cast<uint32_t>(uint64_t{shape_.tp_rank} * shape_.heads_total / shape_.tp_size);
}

Status Layout::make(LayoutKind kind, const PagedKvShape& shape, std::vector<Plane> planes, uint64_t plane_bytes,
                    uint32_t blocks, uint64_t pool_bytes, const std::string& model, Layout* out, std::string* error) {
  if (blocks < 1 || blocks > kBlocksMax) return refuse(error, "blocks", blocks, 1, kBlocksMax);
  if (pool_bytes < 1 || pool_bytes > kPoolBytesMax) return refuse(error, "pool_bytes", pool_bytes, 1, kPoolBytesMax);
  if (model.size() > kModelBytesMax) return refuse(error, "model (bytes)", model.size(), 0, kModelBytesMax);
  for (size_t i = 0; i < planes.size(); i++) {
    const Plane& plane = planes[i];
    const std::string name = "planes[" + std::to_string(i) + "]";
    if (plane.block_stride < plane_bytes || plane.block_stride > kPoolBytesMax)
      return refuse(error, name + ".block_stride", plane.block_stride, plane_bytes, kPoolBytesMax);
    const uint64_t extent = multiply(blocks - 1, plane.block_stride);
    if (extent > pool_bytes || plane_bytes > pool_bytes - extent) {
      *error = name + " needs " + std::to_string(extent) + " + " + std::to_string(plane_bytes) +
               " bytes; the pool has " + std::to_string(pool_bytes);
      return Status::kInvalid;
    }
    const uint64_t base_max = pool_bytes - extent - plane_bytes;
    if (plane.base > base_max) return refuse(error, name + ".base", plane.base, 0, base_max);
  }
  if (kind == LayoutKind::kTensorList) {
    std::vector<size_t> order(planes.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return planes[a].base < planes[b].base; });
    for (size_t i = 0; i < order.size(); i++) {
      for (size_t j = i + 1; j < order.size(); j++) {
        const Plane& first = planes[order[i]];
        const Plane& other = planes[order[j]];
        if (other.base >= first.base + (blocks - 1) * first.block_stride + plane_bytes) break;
        if (!overlap(first, other, plane_bytes, blocks)) continue;
        *error = "planes[" + std::to_string(order[i]) + "] and planes[" + std::to_string(order[j]) + "] overlap";
        return Status::kInvalid;
      }
    }
  }
  out->kind_ = kind;
  out->shape_ = shape;
  out->planes_ = std::move(planes);
  out->plane_bytes_ = plane_bytes;
  out->blocks_ = blocks;
  out->pool_bytes_ = pool_bytes;
  out->model_ = model;
  // Paged pools and tensor lists of one shape hold the same planes.
  std::vector<uint8_t> identity;
  put<uint8_t>(&identity, kind == LayoutKind::kOpaque ? 1 : 0);
  put<uint64_t>(&identity, plane_bytes);
  for (const uint32_t field : {shape.layers, shape.block_tokens, shape.heads, shape.heads_total, shape.head_dim,
                               shape.element_bytes, shape.tp_size})
    put<uint32_t>(&identity, field);
  put<uint8_t>(&identity, static_cast<uint8_t>(shape.inner_order));
  put<uint8_t>(&identity, shape.kv_split == KvSplit::kJoined ? 1 : 0);
  identity.insert(identity.end(), model.begin(), model.end());
  out->hash_ = XXH3_64bits(identity.data(), identity.size());
  return Status::kOk;
}

Status Layout::paged_kv(const PagedKvShape& shape, uint32_t blocks, uint64_t pool_bytes, const std::string& model,
                        Layout* out, std::string* error) {
  if (const Status status = check_shape(shape, error); status != Status::kOk) return status;
  if (blocks < 1 || blocks > kBlocksMax) return refuse(error, "blocks", blocks, 1, kBlocksMax);
  const uint64_t plane_bytes = plane_bytes_of(shape);
  const uint64_t parts = shape.kv_split == KvSplit::kJoined ? 1 : 2;
  const uint64_t all = multiply(multiply(plane_bytes, parts * shape.layers), blocks);
  if (all > pool_bytes) {
    *error = "the pool must have at least " + std::to_string(all) + " bytes for " + std::to_string(blocks) +
             " blocks; it has " + std::to_string(pool_bytes);
    return Status::kInvalid;
  }
  std::vector<Plane> planes;
  planes.reserve(parts * shape.layers);
  for (uint64_t layer = 0; layer < shape.layers; layer++) {
    for (uint64_t part = 0; part < parts; part++) {
      if (shape.block_order == BlockOrder::kBlockMajor) {
        const uint64_t place = shape.kv_split == KvSplit::kSeparate ? part * shape.layers + layer : layer * parts + part;
        planes.push_back({place * plane_bytes, parts * shape.layers * plane_bytes});
      } else if (shape.kv_split == KvSplit::kAdjacent) {
        planes.push_back({(layer * blocks * 2 + part) * plane_bytes, 2 * plane_bytes});
      } else {
        planes.push_back({(layer * parts + part) * blocks * plane_bytes, plane_bytes});
      }
    }
  }
  return make(LayoutKind::kPagedKv, shape, std::move(planes), plane_bytes, blocks, pool_bytes, model, out, error);
}

Status Layout::tensor_list(const PagedKvShape& shape, const std::vector<Plane>& planes, uint32_t blocks,
                           uint64_t pool_bytes, const std::string& model, Layout* out, std::string* error) {
  if (const Status status = check_shape(shape, error); status != Status::kOk) return status;
  const uint64_t expected = uint64_t{shape.layers} * (shape.kv_split == KvSplit::kJoined ? 1 : 2);
  if (planes.size() != expected) return refuse(error, "planes (how many)", planes.size(), expected, expected);
  return make(LayoutKind::kTensorList, shape, planes, plane_bytes_of(shape), blocks, pool_bytes, model, out, error);
}

Status Layout::opaque(uint64_t block_bytes, uint64_t stride, uint32_t blocks, uint64_t pool_bytes, Layout* out,
                      std::string* error) {
  if (block_bytes < 1 || block_bytes > kPoolBytesMax) return refuse(error, "block_bytes", block_bytes, 1, kPoolBytesMax);
  return make(LayoutKind::kOpaque, {}, {{0, stride}}, block_bytes, blocks, pool_bytes, {}, out, error);
}

void Layout::encode(std::vector<uint8_t>* out) const {
  put<uint32_t>(out, kBlobMagic);
  put<uint8_t>(out, static_cast<uint8_t>(kind_));
  put<uint8_t>(out, static_cast<uint8_t>(shape_.block_order));
  put<uint8_t>(out, static_cast<uint8_t>(shape_.inner_order));
  put<uint8_t>(out, static_cast<uint8_t>(shape_.kv_split));
  put<uint32_t>(out, blocks_);
  put<uint64_t>(out, pool_bytes_);
  put<uint64_t>(out, plane_bytes_);
  for (const uint32_t field : {shape_.layers, shape_.block_tokens, shape_.heads, shape_.heads_total, shape_.head_dim,
                               shape_.element_bytes, shape_.tp_rank, shape_.tp_size})
    put<uint32_t>(out, field);
  put<uint32_t>(out, static_cast<uint32_t>(model_.size()));
  out->insert(out->end(), model_.begin(), model_.end());
  // Where planes lie follows from a paged shape.
  const size_t planes = kind_ == LayoutKind::kPagedKv ? 0 : planes_.size();
  put<uint32_t>(out, static_cast<uint32_t>(planes));
  for (size_t i = 0; i < planes; i++) {
    put<uint64_t>(out, planes_[i].base);
    put<uint64_t>(out, planes_[i].block_stride);
  }
}

Status Layout::decode(const uint8_t* bytes, size_t size, Layout* out, std::string* error) {
  WordReader in(bytes, size);
  const auto damaged = [&](const char* what) {
    *error = std::string("a layout of a peer ") + what;
    return Status::kInvalid;
  };
  if (in.take<uint32_t>() != kBlobMagic) return damaged("is not of a version that is known here");
  const auto kind = in.take<uint8_t>();
  PagedKvShape shape;
  shape.block_order = static_cast<BlockOrder>(in.take<uint8_t>());
  shape.inner_order = static_cast<InnerOrder>(in.take<uint8_t>());
  shape.kv_split = static_cast<KvSplit>(in.take<uint8_t>());
  const auto blocks = in.take<uint32_t>();
  const auto pool_bytes = in.take<uint64_t>();
  const auto plane_bytes = in.take<uint64_t>();
  for (uint32_t* field : {&shape.layers, &shape.block_tokens, &shape.heads, &shape.heads_total, &shape.head_dim,
                          &shape.element_bytes, &shape.tp_rank, &shape.tp_size})
    *field = in.take<uint32_t>();
  const auto model_bytes = in.take<uint32_t>();
  if (in.failed() || model_bytes > kModelBytesMax) return damaged("is cut off, or its model name too long");
  const std::string model = in.text(model_bytes);
  const auto count = in.take<uint32_t>();
  if (in.failed() || count > kPlanesMax || in.left() != size_t{count} * 16) return damaged("has not the length it says");
  std::vector<Plane> planes(count);
  for (Plane& plane : planes) {
    plane.base = in.take<uint64_t>();
    plane.block_stride = in.take<uint64_t>();
  }
  Status status;
  if (kind == static_cast<uint8_t>(LayoutKind::kPagedKv) && count == 0) {
    status = paged_kv(shape, blocks, pool_bytes, model, out, error);
  } else if (kind == static_cast<uint8_t>(LayoutKind::kTensorList)) {
    status = tensor_list(shape, planes, blocks, pool_bytes, model, out, error);
  } else if (kind == static_cast<uint8_t>(LayoutKind::kOpaque) && count == 1 && planes[0].base == 0) {
    status = opaque(plane_bytes, planes[0].block_stride, blocks, pool_bytes, out, error);
  } else {
    return damaged("has a kind or planes that do not go together");
  }
  if (status == Status::kOk && out->plane_bytes_ != plane_bytes) return damaged("has a plane_bytes that is not of its shape");
  return status;
}

}  // namespace millrace::kv
