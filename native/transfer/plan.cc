// How planes of one layout become planes of another, and the runs of given blocks. See plan.h.
#include "plan.h"

#include <algorithm>

namespace millrace::kv {

namespace {

Status mismatch(std::string* error, const char* field, const std::string& source, const std::string& target) {
  *error = std::string(field) + " differs: " + source + " at the source, " + target + " at the target";
  return Status::kMismatch;
}

Status check_same(const Layout& source, const Layout& target, std::string* error) {
  const auto name = [](const Layout& layout) { return layout.kind() == LayoutKind::kOpaque ? "opaque" : "paged KV"; };
  if (std::string(name(source)) != name(target)) return mismatch(error, "kind of layout", name(source), name(target));
  if (source.kind() == LayoutKind::kOpaque) {
    if (source.plane_bytes() == target.plane_bytes()) return Status::kOk;
    return mismatch(error, "block_bytes", std::to_string(source.plane_bytes()), std::to_string(target.plane_bytes()));
  }
  if (source.model() != target.model())
    return mismatch(error, "model", "\"" + source.model() + "\"", "\"" + target.model() + "\"");
  const PagedKvShape& s = source.shape();
  const PagedKvShape& t = target.shape();
  const struct {
    const char* name;
    uint32_t source, target;
  } fields[] = {{"layers", s.layers, t.layers},
                {"block_tokens", s.block_tokens, t.block_tokens},
                {"heads_total", s.heads_total, t.heads_total},
                {"head_dim", s.head_dim, t.head_dim},
                {"element_bytes", s.element_bytes, t.element_bytes},
                {"parts (K and V, or joined)", source.parts(), target.parts()}};
  for (const auto& field : fields) {
    if (field.source != field.target)
      return mismatch(error, field.name, std::to_string(field.source), std::to_string(field.target));
  }
  return Status::kOk;
}

}  // namespace

Status Transform::make(const Layout& source, const Layout& target, const Part& part,
                       std::shared_ptr<const Transform>* out, std::string* error) {
  if (const Status status = check_same(source, target, error); status != Status::kOk) return status;
  auto made = std::make_shared<Transform>();
  made->source_blocks_ = source.blocks();
  made->target_blocks_ = target.blocks();
  if (source.kind() == LayoutKind::kOpaque) {
    if (part.first_layer != 0 || part.layers != 0 || part.first_head != 0 || part.heads != 0) {
      *error = "part must be everything: these blocks have neither layers nor heads";
      return Status::kInvalid;
    }
    const uint64_t bytes = source.plane_bytes();
    made->add({0, 0, source.planes()[0].block_stride, target.planes()[0].block_stride, bytes, bytes, bytes, 1});
    *out = std::move(made);
    return Status::kOk;
  }
  const PagedKvShape& shape = source.shape();
  if (part.first_layer >= shape.layers || part.layers > shape.layers - part.first_layer) {
    *error = "part.first_layer and part.layers must lie inside the " + std::to_string(shape.layers) + " layers; got " +
             std::to_string(part.first_layer) + " and " + std::to_string(part.layers);
    return Status::kInvalid;
  }
  const uint32_t layers = part.layers == 0 ? shape.layers - part.first_layer : part.layers;
  if (part.first_head >= shape.heads_total || part.heads > shape.heads_total - part.first_head) {
    *error = "part.first_head and part.heads must lie inside the " + std::to_string(shape.heads_total) +
             " heads; got " + std::to_string(part.first_head) + " and " + std::to_string(part.heads);
    return Status::kInvalid;
  }
  // Heads by their number in the whole model, [low, high).
  const uint32_t source_low = source.first_head();
  const uint32_t target_low = target.first_head();
  const uint32_t source_heads = shape.heads;
  const uint32_t target_heads = target.shape().heads;
  const uint32_t low = std::max({source_low, target_low, part.first_head});
  uint32_t high = std::min(source_low + source_heads, target_low + target_heads);
  if (part.heads != 0) high = std::min(high, part.first_head + part.heads);
  if (low >= high) {
    const auto range = [](uint32_t first, uint32_t count) {
      return std::to_string(first) + " to " + std::to_string(first + count - 1);
    };
    return mismatch(error, "every head", range(source_low, source_heads), range(target_low, target_heads));
  }

  const uint64_t vector = uint64_t{shape.head_dim} * shape.element_bytes;
  const uint64_t tokens = shape.block_tokens;
  const uint64_t heads = high - low;
  const uint64_t s = low - source_low;
  const uint64_t t = low - target_low;
  const bool from_hnd = shape.inner_order == InnerOrder::kHnd;
  const bool to_hnd = target.shape().inner_order == InnerOrder::kHnd;
  // Where the vector of (token 0, first common head) lies, and how far the next token and the next head are.
  const uint64_t source_first = s * (from_hnd ? tokens : 1) * vector;
  const uint64_t target_first = t * (to_hnd ? tokens : 1) * vector;
  const uint64_t source_token = (from_hnd ? 1 : source_heads) * vector;
  const uint64_t target_token = (to_hnd ? 1 : target_heads) * vector;
  const uint64_t source_head = (from_hnd ? tokens : 1) * vector;
  const uint64_t target_head = (to_hnd ? tokens : 1) * vector;
  for (uint32_t layer = part.first_layer; layer < part.first_layer + layers; layer++) {
    for (uint32_t kv = 0; kv < source.parts(); kv++) {
      const Plane& from = source.planes()[size_t{layer} * source.parts() + kv];
      const Plane& to = target.planes()[size_t{layer} * target.parts() + kv];
      Piece piece{from.base + source_first, to.base + target_first, from.block_stride, to.block_stride, 0, 0, 0, 1};
      if (from_hnd == to_hnd && (from_hnd || (heads == source_heads && heads == target_heads))) {
        // Heads beside each other with all their tokens, or tokens beside each other with all their heads.
        piece.length = piece.source_stride = piece.target_stride = heads * tokens * vector;
        made->add(piece);
      } else if (!from_hnd && !to_hnd) {
        piece.length = heads * vector;
        piece.source_stride = source_token;
        piece.target_stride = target_token;
        piece.count = static_cast<uint32_t>(tokens);
        made->add(piece);
      } else {
        for (uint64_t head = 0; head < heads; head++) {
          Piece one = piece;
          one.source += head * source_head;
          one.target += head * target_head;
          one.length = vector;
          one.source_stride = source_token;
          one.target_stride = target_token;
          one.count = static_cast<uint32_t>(tokens);
          made->add(one);
        }
      }
    }
  }
  *out = std::move(made);
  return Status::kOk;
}

// Pieces that lie side by side in both blocks become one: a whole block where planes are beside each other.
void Transform::add(const Piece& piece) {
  bytes_per_block_ += piece.length * piece.count;
  if (!pieces_.empty()) {
    Piece& last = pieces_.back();
    const bool beside = last.count == 1 && piece.count == 1 && last.source + last.length == piece.source &&
                        last.target + last.length == piece.target &&
                        last.source_block_stride == piece.source_block_stride &&
                        last.target_block_stride == piece.target_block_stride;
    if (beside) {
      last.length += piece.length;
      last.source_stride = last.target_stride = last.length;
      return;
    }
  }
  pieces_.push_back(piece);
}

Status Transform::lower(const uint32_t* source_blocks, const uint32_t* target_blocks, uint32_t count,
                        std::vector<Run>* out, std::string* error) const {
  // One bit per block of the target, kept zero between calls.
  thread_local std::vector<uint64_t> taken;
  if (taken.size() < target_blocks_ / 64 + 1) taken.resize(target_blocks_ / 64 + 1);
  uint32_t checked = 0;
  Status status = Status::kOk;
  for (; checked < count; checked++) {
    const uint32_t source = source_blocks[checked];
    const uint32_t target = target_blocks[checked];
    if (source >= source_blocks_ || target >= target_blocks_) {
      const bool is_source = source >= source_blocks_;
      *error = std::string(is_source ? "source" : "target") + " block " + std::to_string(is_source ? source : target) +
               " at index " + std::to_string(checked) + " is outside its pool of " +
               std::to_string(is_source ? source_blocks_ : target_blocks_) + " blocks";
      status = Status::kInvalid;
      break;
    }
    uint64_t& word = taken[target / 64];
    const uint64_t bit = uint64_t{1} << target % 64;
    if ((word & bit) != 0) {
      *error = "target block " + std::to_string(target) + " is in the list twice";
      status = Status::kInvalid;
      break;
    }
    word |= bit;
  }
  for (uint32_t i = 0; i < checked; i++) taken[target_blocks[i] / 64] &= ~(uint64_t{1} << target_blocks[i] % 64);
  if (status != Status::kOk) return status;

  const size_t first = out->size();
  out->reserve(first + pieces_.size() * count);
  for (const Piece& piece : pieces_) {
    const size_t begin = out->size();
    for (uint32_t i = 0; i < count; i++) {
      const uint64_t source = piece.source + source_blocks[i] * piece.source_block_stride;
      const uint64_t target = piece.target + target_blocks[i] * piece.target_block_stride;
      if (piece.count == 1 && out->size() > begin) {
        Run& last = out->back();
        if (last.source + last.length == source && last.target + last.length == target) {
          last.length += piece.length;
          last.source_stride = last.target_stride = last.length;
          continue;
        }
      }
      out->push_back({source, target, piece.length, piece.source_stride, piece.target_stride, piece.count, i});
    }
  }
  return Status::kOk;
}

}  // namespace millrace::kv
