// Words of JS into types of the core: see transfer_words.h.
#include "transfer_words.h"

#include <vector>

#include "millrace/transfer_descriptor.h"

namespace millrace {
namespace {

constexpr uint64_t kNsPerMs = 1'000'000;
static_assert(kTransferBlocks == kv::kBlocksPerTransferMax);

uint64_t two_words(const uint32_t* words) { return uint64_t{words[1]} << 32 | words[0]; }

bool at_most(uint32_t value, uint32_t max, const char* field, std::string* error) {
  if (value <= max) return true;
  *error = std::string(field) + " is " + std::to_string(value) + ", allowed are 0 to " + std::to_string(max);
  return false;
}

kv::PagedKvShape read_shape(std::span<const uint32_t> words) {
  kv::PagedKvShape shape;
  shape.layers = words[kTransferLayoutLayers];
  shape.block_tokens = words[kTransferLayoutBlockTokens];
  shape.heads = words[kTransferLayoutHeads];
  shape.heads_total = words[kTransferLayoutHeadsTotal];
  shape.head_dim = words[kTransferLayoutHeadDim];
  shape.element_bytes = words[kTransferLayoutElementBytes];
  shape.tp_rank = words[kTransferLayoutTpRank];
  shape.tp_size = words[kTransferLayoutTpSize];
  shape.block_order = static_cast<kv::BlockOrder>(words[kTransferLayoutBlockOrder]);
  shape.inner_order = static_cast<kv::InnerOrder>(words[kTransferLayoutInnerOrder]);
  shape.kv_split = static_cast<kv::KvSplit>(words[kTransferLayoutKvSplit]);
  return shape;
}

std::vector<uint32_t> list(std::span<const uint32_t> words, size_t at, size_t count) {
  return {words.begin() + at, words.begin() + at + count};
}

}  // namespace

kv::Status read_layout(std::span<const uint32_t> words, uint64_t pool_bytes, const std::string& model, kv::Layout* out,
                       std::string* error) {
  constexpr uint32_t kPlanesMax = kv::kLayersMax * 2;
  if (words.size() < kTransferLayoutWords ||
      words.size() != kTransferLayoutWords + size_t{words[kTransferLayoutPlanes]} * kTransferPlaneWords) {
    *error = "layout has the wrong number of words";
    return kv::Status::kInvalid;
  }
  const uint32_t kind = words[kTransferLayoutKind];
  if (!at_most(kind, static_cast<uint32_t>(kv::LayoutKind::kOpaque), "layout.kind", error) ||
      !at_most(words[kTransferLayoutPlanes], kPlanesMax, "layout.planes", error) ||
      !at_most(words[kTransferLayoutBlockOrder], 1, "layout.blockOrder", error) ||
      !at_most(words[kTransferLayoutInnerOrder], 1, "layout.innerOrder", error) ||
      !at_most(words[kTransferLayoutKvSplit], 2, "layout.kvSplit", error)) {
    return kv::Status::kInvalid;
  }
  const uint32_t blocks = words[kTransferLayoutBlocks];
  switch (static_cast<kv::LayoutKind>(kind)) {
    case kv::LayoutKind::kPagedKv:
      return kv::Layout::paged_kv(read_shape(words), blocks, pool_bytes, model, out, error);
    case kv::LayoutKind::kOpaque:
      return kv::Layout::opaque(two_words(&words[kTransferLayoutBlockBytes]), two_words(&words[kTransferLayoutStride]),
                                blocks, pool_bytes, out, error);
    case kv::LayoutKind::kTensorList: break;
  }
  std::vector<kv::Plane> planes;
  for (size_t at = kTransferLayoutWords; at < words.size(); at += kTransferPlaneWords) {
    planes.push_back({two_words(&words[at]), two_words(&words[at + 2])});
  }
  return kv::Layout::tensor_list(read_shape(words), planes, blocks, pool_bytes, model, out, error);
}

kv::Status read_request(std::span<const uint32_t> words, std::span<const uint8_t> notification, uint64_t now_ns,
                        kv::TransferRequest* out, std::string* error) {
  if (words.size() < kTransferRequestWords) {
    *error = "request has fewer words than its head";
    return kv::Status::kInvalid;
  }
  if (!at_most(words[kTransferRequestDirection], 1, "direction", error) ||
      !at_most(words[kTransferRequestIntegrity], 2, "integrity", error) ||
      !at_most(words[kTransferRequestReader], 2, "reader", error) ||
      !at_most(words[kTransferRequestPriority], 255, "priority", error) ||
      !at_most(words[kTransferRequestTransport], std::size(kTransports), "transport", error) ||
      !at_most(words[kTransferRequestGenerations], 1, "generations", error) ||
      !at_most(words[kTransferRequestBlocks], kTransferBlocks, "blocks", error)) {
    return kv::Status::kInvalid;
  }
  const size_t count = words[kTransferRequestBlocks];
  const bool has_generations = words[kTransferRequestGenerations] == 1;
  if (words.size() != kTransferRequestWords + count * (has_generations ? 3 : 2)) {
    *error = "request has other words than its number of blocks says";
    return kv::Status::kInvalid;
  }
  out->peer = words[kTransferRequestPeer];
  out->direction = static_cast<kv::Direction>(words[kTransferRequestDirection]);
  out->local_pool = words[kTransferRequestLocalPool];
  out->remote_pool = words[kTransferRequestRemotePool];
  out->part = {words[kTransferRequestFirstLayer], words[kTransferRequestLayers], words[kTransferRequestFirstHead],
               words[kTransferRequestHeads]};
  out->local_blocks = list(words, kTransferRequestWords, count);
  out->remote_blocks = list(words, kTransferRequestWords + count, count);
  if (has_generations) out->remote_generations = list(words, kTransferRequestWords + 2 * count, count);
  out->notification.assign(notification.begin(), notification.end());
  out->integrity = static_cast<kv::Integrity>(words[kTransferRequestIntegrity]);
  out->reader = static_cast<kv::Reader>(words[kTransferRequestReader]);
  out->priority = static_cast<uint8_t>(words[kTransferRequestPriority]);
  out->lease = two_words(&words[kTransferRequestLease]);
  const uint64_t deadline_ms = words[kTransferRequestDeadlineMs];
  out->deadline_ns = deadline_ms == 0 ? 0 : now_ns + deadline_ms * kNsPerMs;
  const uint32_t transport = words[kTransferRequestTransport];
  if (transport > 0) out->transport = kTransports[transport - 1];
  return kv::Status::kOk;
}

}  // namespace millrace
