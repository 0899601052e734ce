// Random pairs of layouts between which bytes can be moved, and block lists of theirs.
#pragma once

#include <algorithm>
#include <vector>

#include "check.h"
#include "plan.h"

namespace millrace::kv::test {

struct LayoutPair {
  Layout source, target;
  std::shared_ptr<const Transform> transform;
  std::vector<uint32_t> source_blocks, target_blocks;
};

inline Layout random_side(std::mt19937& random, PagedKvShape shape, uint32_t heads_total, uint32_t blocks) {
  shape.heads_total = heads_total;
  shape.tp_size = 1u << random() % 3;
  shape.tp_rank = pick(random, 0, shape.tp_size - 1);
  shape.heads = shape.kv_split == KvSplit::kJoined ? heads_total : std::max(1u, heads_total / shape.tp_size);
  shape.inner_order = static_cast<InnerOrder>(random() % 2);
  shape.block_order = static_cast<BlockOrder>(random() % 2);
  if (shape.kv_split != KvSplit::kJoined) shape.kv_split = static_cast<KvSplit>(random() % 2);
  const uint64_t parts = shape.kv_split == KvSplit::kJoined ? 1 : 2;
  const uint64_t plane = uint64_t{shape.block_tokens} * shape.heads * shape.head_dim * shape.element_bytes;
  Layout layout;
  std::string error;
  check(Layout::paged_kv(shape, blocks, plane * shape.layers * parts * blocks, "m", &layout, &error) == Status::kOk, error);
  return layout;
}

inline std::vector<uint32_t> random_list(std::mt19937& random, uint32_t blocks, uint32_t count) {
  std::vector<uint32_t> list(blocks);
  for (uint32_t i = 0; i < blocks; i++) list[i] = i;
  if (random() % 2 == 0) std::shuffle(list.begin(), list.end(), random);
  list.resize(count);
  return list;
}

// Those whose ranks have no head in common are drawn again.
inline LayoutPair random_pair(std::mt19937& random) {
  for (;;) {
    PagedKvShape shape;
    shape.layers = pick(random, 1, 4);
    shape.block_tokens = pick(random, 1, 6);
    shape.head_dim = pick(random, 1, 40);
    shape.element_bytes = 1u << random() % 3;
    shape.kv_split = static_cast<KvSplit>(random() % 3);
    const uint32_t heads_total = 1u << random() % 4;
    LayoutPair pair;
    pair.source = random_side(random, shape, heads_total, pick(random, 1, 12));
    pair.target = random_side(random, shape, heads_total, pick(random, 1, 12));
    std::string error;
    if (Transform::make(pair.source, pair.target, {}, &pair.transform, &error) != Status::kOk) continue;
    const uint32_t count = pick(random, 1, std::min(pair.source.blocks(), pair.target.blocks()));
    pair.source_blocks = random_list(random, pair.source.blocks(), count);
    pair.target_blocks = random_list(random, pair.target.blocks(), count);
    return pair;
  }
}

}  // namespace millrace::kv::test
