// Layouts that were told, transforms that are kept, and the checks of a request. See remote_layouts.h.
#include "remote_layouts.h"

#include <algorithm>

namespace millrace::kv {
namespace {

constexpr size_t kTransformsMax = 64;

bool same(const Part& a, const Part& b) {
  return a.first_layer == b.first_layer && a.layers == b.layers && a.first_head == b.first_head && a.heads == b.heads;
}

}  // namespace

Status RemoteLayouts::take(std::span<const uint8_t> payload, std::string* why) {
  TcpLayout told;
  if (const Status status = TcpLayout::decode(payload, &told, why); status != Status::kOk) return status;
  if (layouts_.size() == kTcpPoolsMax && !layouts_.contains(told.pool)) {
    *why = "layouts of one agent are at most " + std::to_string(kTcpPoolsMax);
    return Status::kFull;
  }
  Layout& known = layouts_[told.pool];
  std::vector<uint8_t> before, now;
  if (known.blocks() != 0) known.encode(&before);
  told.layout.encode(&now);
  if (before == now) return Status::kOk;
  // Requests that run keep the transform that they were accepted with.
  std::erase_if(transforms_, [&](const Known& entry) { return entry.peer_pool == told.pool; });
  known = told.layout;
  return Status::kOk;
}

Status RemoteLayouts::accept(Pool& pool, Direction direction, const TcpRequest& request, std::vector<Run>* runs,
                             std::shared_ptr<const Transform>* transform, BlockHold* hold, std::string* text) {
  if (const Status status = transform_of(pool, direction, request, transform, text); status != Status::kOk) return status;
  const uint64_t count = request.peer_blocks.size();
  if (count > 1 && count * (*transform)->runs_per_block() > kTcpPartRunsMax) {
    *text = "runs of a request must be at most " + std::to_string(kTcpPartRunsMax);
    return Status::kInvalid;
  }
  if ((*transform)->bytes_per_block() * count != request.bytes) {
    *text = "bytes differ: " + std::to_string(request.bytes) + " at the initiator, " +
            std::to_string((*transform)->bytes_per_block() * count) + " at the responder";
    return Status::kMismatch;
  }
  // Before anything is granted: what would be found at the first byte.
  const bool reads = direction == Direction::kRead;
  runs->clear();
  const Status lowered = (*transform)->lower((reads ? request.peer_blocks : request.own_blocks).data(),
                                             (reads ? request.own_blocks : request.peer_blocks).data(),
                                             static_cast<uint32_t>(count), runs, text);
  if (lowered != Status::kOk) return lowered;
  return hold->serve(pool, direction, request.peer_blocks, request.generations, text);
}

Status RemoteLayouts::transform_of(const Pool& pool, Direction direction, const TcpRequest& request,
                                   std::shared_ptr<const Transform>* out, std::string* text) {
  for (const Known& known : transforms_) {
    if (known.own_pool != request.peer_pool || known.peer_pool != request.own_pool || known.direction != direction ||
        !same(known.part, request.part))
      continue;
    *out = known.transform;
    return Status::kOk;
  }
  const auto layout = layouts_.find(request.own_pool);
  if (layout == layouts_.end()) {
    *text = "the layout of the initiator's pool " + std::to_string(request.own_pool) + " was not told";
    return Status::kNotFound;
  }
  const bool reads = direction == Direction::kRead;
  const Layout& own = pool.layout();
  const Status status = Transform::make(reads ? own : layout->second, reads ? layout->second : own, request.part, out, text);
  if (status != Status::kOk) return status;
  if (transforms_.size() == kTransformsMax) transforms_.erase(transforms_.begin());
  transforms_.push_back({request.peer_pool, request.own_pool, direction, request.part, *out});
  return Status::kOk;
}

void RemoteLayouts::forget_pool(uint32_t own_pool) {
  std::erase_if(transforms_, [&](const Known& known) { return known.own_pool == own_pool; });
}

}  // namespace millrace::kv
