// Layouts and plans against an oracle: pools are filled by element with what each element is (layer, part, token, head of
// the whole model, place in the vector, block), runs are carried out, and every element of the target is looked at. The
// oracle finds elements by formulas of its own.
#include <algorithm>
#include <cstring>
#include <vector>

#include "check.h"
#include "plan.h"

namespace millrace::kv::test {
namespace {

constexpr uint16_t kUntouched = 0xffff;

// A pool of 16-bit elements (element_bytes 2) with a layout.
struct TestPool {
  Layout layout;
  std::vector<uint16_t> elements;
};

// The element's index in its pool, from the shape alone; planes of tensor lists are given by the test itself.
uint64_t element_at(const TestPool& pool, const std::vector<Plane>& planes, uint32_t block, uint32_t layer, uint32_t kv,
                    uint32_t token, uint32_t head, uint32_t dim) {
  const PagedKvShape& s = pool.layout.shape();
  const uint64_t parts = s.kv_split == KvSplit::kJoined ? 1 : 2;
  const uint64_t inner = s.inner_order == InnerOrder::kNhd
                             ? (uint64_t{token} * s.heads + head) * s.head_dim + dim
                             : (uint64_t{head} * s.block_tokens + token) * s.head_dim + dim;
  const uint64_t plane = uint64_t{s.block_tokens} * s.heads * s.head_dim;
  if (!planes.empty()) {
    const Plane& at = planes[layer * parts + kv];
    return (at.base + block * at.block_stride) / 2 + inner;
  }
  const uint64_t blocks = pool.layout.blocks();
  uint64_t index;
  if (s.block_order == BlockOrder::kBlockMajor) {
    const uint64_t within = s.kv_split == KvSplit::kSeparate ? kv * s.layers + layer : layer * parts + kv;
    index = block * s.layers * parts + within;
  } else if (s.kv_split == KvSplit::kAdjacent) {
    index = (layer * blocks + block) * 2 + kv;
  } else {
    index = (layer * parts + kv) * blocks + block;
  }
  return index * plane + inner;
}

uint16_t value_of(uint32_t block, uint32_t layer, uint32_t kv, uint32_t token, uint32_t head, uint32_t dim) {
  uint32_t hash = 2166136261u;
  for (const uint32_t part : {block, layer, kv, token, head, dim}) hash = (hash ^ (part + 1)) * 16777619u;
  return static_cast<uint16_t>((hash >> 8) % kUntouched);
}

// Planes in a random order, some interleaved, with gaps.
std::vector<Plane> random_planes(std::mt19937& random, uint32_t planes, uint64_t plane_bytes, uint32_t blocks,
                                 uint64_t* pool_bytes) {
  std::vector<Plane> list(planes);
  const uint64_t gap = pick(random, 0, 3) * 2;
  if (random() % 2 == 0) {
    const uint64_t stride = planes * (plane_bytes + gap);
    for (uint32_t i = 0; i < planes; i++) list[i] = {i * (plane_bytes + gap), stride};
    *pool_bytes = blocks * stride;
  } else {
    const uint64_t stride = plane_bytes + gap;
    for (uint32_t i = 0; i < planes; i++) list[i] = {(planes - 1 - i) * blocks * stride, stride};
    *pool_bytes = planes * blocks * stride;
  }
  return list;
}

struct Side {
  TestPool pool;
  std::vector<Plane> planes;
};

Side make_side(std::mt19937& random, PagedKvShape shape, uint32_t heads_total, uint32_t tp_size, uint32_t blocks) {
  shape.heads_total = heads_total;
  shape.tp_size = shape.kv_split == KvSplit::kJoined ? pick(random, 1, 4) : tp_size;
  shape.tp_rank = pick(random, 0, shape.tp_size - 1);
  shape.heads = shape.kv_split == KvSplit::kJoined ? heads_total : std::max(1u, heads_total / shape.tp_size);
  shape.inner_order = static_cast<InnerOrder>(random() % 2);
  shape.block_order = static_cast<BlockOrder>(random() % 2);
  if (shape.kv_split != KvSplit::kJoined) shape.kv_split = static_cast<KvSplit>(random() % 2);
  const uint32_t parts = shape.kv_split == KvSplit::kJoined ? 1 : 2;
  const uint64_t plane_bytes = uint64_t{shape.block_tokens} * shape.heads * shape.head_dim * 2;
  Side side;
  std::string error;
  uint64_t bytes = plane_bytes * shape.layers * parts * blocks + pick(random, 0, 4) * 2;
  Status status;
  if (random() % 3 == 0) {
    side.planes = random_planes(random, shape.layers * parts, plane_bytes, blocks, &bytes);
    status = Layout::tensor_list(shape, side.planes, blocks, bytes, "m", &side.pool.layout, &error);
  } else {
    status = Layout::paged_kv(shape, blocks, bytes, "m", &side.pool.layout, &error);
  }
  check(status == Status::kOk, "a sound layout is taken: " + error);
  std::vector<uint8_t> blob;
  side.pool.layout.encode(&blob);
  Layout decoded;
  check(Layout::decode(blob.data(), blob.size(), &decoded, &error) == Status::kOk, "and decoded: " + error);
  check(decoded.hash() == side.pool.layout.hash() && decoded.planes().size() == side.pool.layout.planes().size(), "alike");
  blob[random() % blob.size()] ^= static_cast<uint8_t>(1 + random() % 255);
  blob.resize(blob.size() - random() % 3);
  // Anything may come of it but a finding of the sanitizers.
  Layout damaged;
  Layout::decode(blob.data(), blob.size(), &damaged, &error);
  side.pool.elements.assign(bytes / 2, kUntouched);
  return side;
}

std::vector<uint32_t> random_blocks(std::mt19937& random, uint32_t blocks, uint32_t count) {
  std::vector<uint32_t> all(blocks);
  for (uint32_t i = 0; i < blocks; i++) all[i] = i;
  // Stretches of neighbours, so that runs merge.
  const uint32_t at = pick(random, 0, blocks - count);
  std::vector<uint32_t> list(all.begin() + at, all.begin() + at + count);
  if (random() % 2 == 0) std::shuffle(list.begin(), list.end(), random);
  return list;
}

void one_case(std::mt19937& random) {
  PagedKvShape shape;
  shape.layers = pick(random, 1, 4);
  shape.block_tokens = pick(random, 1, 5);
  shape.head_dim = pick(random, 1, 4);
  shape.element_bytes = 2;
  shape.kv_split = static_cast<KvSplit>(random() % 3);
  const uint32_t heads_total = 1u << random() % 4;
  Side source = make_side(random, shape, heads_total, 1u << random() % 4, pick(random, 1, 9));
  Side target = make_side(random, shape, heads_total, 1u << random() % 4, pick(random, 1, 9));
  const Layout& from = source.pool.layout;
  const Layout& to = target.pool.layout;
  const uint32_t parts = from.parts();
  for (uint32_t block = 0; block < from.blocks(); block++)
    for (uint32_t layer = 0; layer < shape.layers; layer++)
      for (uint32_t kv = 0; kv < parts; kv++)
        for (uint32_t token = 0; token < shape.block_tokens; token++)
          for (uint32_t head = 0; head < from.shape().heads; head++)
            for (uint32_t dim = 0; dim < shape.head_dim; dim++)
              source.pool.elements[element_at(source.pool, source.planes, block, layer, kv, token, head, dim)] =
                  value_of(block, layer, kv, token, from.first_head() + head, dim);

  Part part;
  if (random() % 3 == 0) {
    part.first_layer = pick(random, 0, shape.layers - 1);
    part.layers = pick(random, 0, shape.layers - part.first_layer);
  }
  if (random() % 3 == 0) {
    part.first_head = pick(random, 0, heads_total - 1);
    part.heads = pick(random, 0, heads_total - part.first_head);
  }
  const uint32_t last_layer = part.first_layer + (part.layers == 0 ? shape.layers - part.first_layer : part.layers);
  const uint32_t last_head = part.heads == 0 ? heads_total : part.first_head + part.heads;
  const auto is_wanted = [&](uint32_t layer, uint32_t head) {
    return layer >= part.first_layer && layer < last_layer && head >= part.first_head && head < last_head &&
           head >= from.first_head() && head < from.first_head() + from.shape().heads;
  };
  bool any = false;
  for (uint32_t head = to.first_head(); head < to.first_head() + to.shape().heads; head++)
    any = any || is_wanted(part.first_layer, head);

  std::shared_ptr<const Transform> transform;
  std::string error;
  const Status status = Transform::make(from, to, part, &transform, &error);
  check(status == (any ? Status::kOk : Status::kMismatch), "a common head or none: " + error);
  if (!any) return;
  const uint32_t count = pick(random, 1, std::min(from.blocks(), to.blocks()));
  std::vector<uint32_t> source_blocks = random_blocks(random, from.blocks(), count);
  const std::vector<uint32_t> target_blocks = random_blocks(random, to.blocks(), count);
  // One source may feed several targets.
  if (random() % 4 == 0) source_blocks.assign(count, source_blocks[0]);
  std::vector<Run> runs;
  check(transform->lower(source_blocks.data(), target_blocks.data(), count, &runs, &error) == Status::kOk, error);
  uint64_t bytes = 0;
  auto* from_bytes = reinterpret_cast<uint8_t*>(source.pool.elements.data());
  auto* to_bytes = reinterpret_cast<uint8_t*>(target.pool.elements.data());
  for (const Run& run : runs) {
    check(run.block < count, "a run names its block");
    for (uint32_t i = 0; i < run.count; i++) {
      const uint64_t at = run.source + i * run.source_stride;
      const uint64_t into = run.target + i * run.target_stride;
      check(at + run.length <= from.pool_bytes() && into + run.length <= to.pool_bytes(), "runs stay in their pools");
      std::memcpy(to_bytes + into, from_bytes + at, run.length);
      bytes += run.length;
    }
  }
  check(bytes == transform->bytes_per_block() * count, "as many bytes as it says");
  check(runs.size() <= uint64_t{transform->runs_per_block()} * count, "and no more runs");

  std::vector<uint16_t> expected(target.pool.elements.size(), kUntouched);
  for (uint32_t i = 0; i < count; i++)
    for (uint32_t layer = 0; layer < shape.layers; layer++)
      for (uint32_t kv = 0; kv < parts; kv++)
        for (uint32_t token = 0; token < shape.block_tokens; token++)
          for (uint32_t head = 0; head < to.shape().heads; head++)
            for (uint32_t dim = 0; dim < shape.head_dim; dim++)
              if (is_wanted(layer, to.first_head() + head))
                expected[element_at(target.pool, target.planes, target_blocks[i], layer, kv, token, head, dim)] =
                    value_of(source_blocks[i], layer, kv, token, to.first_head() + head, dim);
  check(expected == target.pool.elements, "every element is where it belongs, and no other was touched");

  // The same plan again with a block too many or one twice.
  std::vector<uint32_t> wrong = target_blocks;
  wrong.push_back(random() % 2 == 0 ? to.blocks() + random() % 3 : target_blocks[0]);
  source_blocks.push_back(0);
  const size_t before = runs.size();
  check(transform->lower(source_blocks.data(), wrong.data(), count + 1, &runs, &error) == Status::kInvalid, "refused");
  check(runs.size() == before && !error.empty(), "with its reason, and nothing appended");
}

// Fields that differ are named with both values.
void mismatches() {
  const PagedKvShape shape{.layers = 2, .block_tokens = 4, .heads = 2, .heads_total = 2, .head_dim = 8, .element_bytes = 2};
  Layout one;
  std::string error;
  check(Layout::paged_kv(shape, 4, 1 << 20, "a", &one, &error) == Status::kOk, error);
  const auto expect = [&](PagedKvShape other, const char* model, const char* words) {
    Layout two;
    check(Layout::paged_kv(other, 4, 1 << 20, model, &two, &error) == Status::kOk, error);
    std::shared_ptr<const Transform> transform;
    check(Transform::make(one, two, {}, &transform, &error) == Status::kMismatch, words);
    check(error.find(words) != std::string::npos, error);
    check(one.hash() != two.hash(), "and the hashes differ");
  };
  PagedKvShape other = shape;
  expect(other, "b", "model differs: \"a\" at the source, \"b\" at the target");
  other.block_tokens = 8;
  expect(other, "a", "block_tokens differs: 4 at the source, 8 at the target");
  other = shape;
  other.element_bytes = 1;
  expect(other, "a", "element_bytes differs: 2 at the source, 1 at the target");
  Layout opaque;
  check(Layout::opaque(64, 64, 4, 256, &opaque, &error) == Status::kOk, error);
  std::shared_ptr<const Transform> transform;
  check(Transform::make(one, opaque, {}, &transform, &error) == Status::kMismatch, "kinds differ");
  Layout refused;
  check(Layout::opaque(64, 64, 5, 256, &refused, &error) == Status::kInvalid, "a block outside the pool");
  other = shape;
  other.heads = 1;
  check(Layout::paged_kv(other, 4, 1 << 20, "a", &refused, &error) == Status::kInvalid, "heads of another TP degree");
  const std::vector<Plane> planes{{0, 128}, {64, 128}, {512, 128}, {576, 128}};
  PagedKvShape small = shape;
  small.heads = small.heads_total = 1;
  small.head_dim = 8;
  check(Layout::tensor_list(small, planes, 4, 1024, "a", &refused, &error) == Status::kOk, error);
  const std::vector<Plane> across{{0, 128}, {32, 128}, {512, 128}, {576, 128}};
  check(Layout::tensor_list(small, across, 4, 1024, "a", &refused, &error) == Status::kInvalid, "planes overlap");
}

}  // namespace

void plan_random(std::mt19937& random, uint32_t cases) {
  mismatches();
  for (uint32_t i = 0; i < cases; i++) one_case(random);
}

}  // namespace millrace::kv::test
