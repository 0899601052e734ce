// Work for a device, parcel by parcel. See cuda_copy.h.
#include "cuda_copy.h"

#include <algorithm>
#include <cstring>

namespace millrace::kv::cuda {
namespace {

// Of one piece of work: what a cancelled copy goes on with at most.
constexpr uint64_t kKernelBytesMost = uint64_t{1} << 30;
constexpr uint64_t kEngineBytesMost = uint64_t{256} << 20;
constexpr size_t kEngineCopiesMost = 4096;
// A unit of a copy, and the least of a digest.
constexpr uint32_t kCopyChunkBytes = 8192;
constexpr uint32_t kDigestChunkBytes = 1024;
constexpr uint32_t kTeamMost = 32;
// Groups of 256 threads. Few fill a bus, and leave the rest of the device to the model; on the device all are of use.
constexpr uint32_t kBusGroups = 16;
constexpr uint32_t kPeerGroups = 32;
constexpr uint32_t kOnDeviceGroupsEach = 8;  // multiprocessor

Lane lane_of(const Side& source, const Side& target) {
  if (source.device < 0) return Lane::kToDevice;
  return target.device < 0 ? Lane::kFromDevice : Lane::kOnDevice;
}

bool on_one_device(const CopyOrder& order) {
  return order.source.device == order.device->ordinal() && order.target.device == order.device->ordinal();
}

uint64_t fragments_of(std::span<const Run> runs) {
  uint64_t fragments = 0;
  for (const Run& run : runs) fragments += run.count;
  return fragments;
}

uint64_t bytes_of_runs(std::span<const Run> runs) {
  uint64_t bytes = 0;
  for (const Run& run : runs) bytes += run.length * run.count;
  return bytes;
}

// Threads that share a unit: as many as have a word of 16 bytes each.
uint32_t team_of(uint64_t length) {
  uint32_t team = 1;
  while (team < kTeamMost && team * 16 < length) team *= 2;
  return team;
}

uint64_t ceiling(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit; }

}  // namespace

bool goes_by_kernel(const CopyOrder& order, uint64_t bytes, uint64_t fragments) {
  if (!order.device->has_kernels() || order.source.kernel_address == 0 || order.target.kernel_address == 0) return false;
  for (const Transform::Piece& piece : order.transform->pieces()) {
    if (piece.length * piece.count > kKernelBytesMost) return false;
  }
  if (on_one_device(order)) return fragments > 1 && bytes / fragments < kOnDeviceFragmentBytes;
  return fragments >= kKernelFragments && bytes / fragments < kKernelFragmentBytes;
}

DeviceCopy::DeviceCopy(const CopyOrder& order)
    : order_(order),
      lane_(lane_of(order.source, order.target)),
      by_kernel_(goes_by_kernel(order, bytes_of_runs(order.runs), fragments_of(order.runs))),
      cursor_(order.runs) {
  const uint32_t every = check_every(order.integrity);
  for (uint32_t i = 0; every != 0 && i < order.source_blocks.size(); i += every) checked_.push_back(i);
}

DeviceCopy::~DeviceCopy() {
  if (!is_quiet()) order_.device->synchronize();
  if (parcel_ != nullptr) order_.device->give_back(parcel_);
}

bool DeviceCopy::is_quiet() const { return !is_queued_ || order_.device->is_past(*parcel_); }

bool DeviceCopy::is_ready() const {
  return order_.device->is_broken() || (parcel_ == nullptr ? order_.device->has_parcel() : is_quiet());
}

// The first call after a piece of work sees what came of it.
Status DeviceCopy::step(bool* is_done) {
  *is_done = false;
  if (!is_ready()) return Status::kOk;
  if (is_queued_) {
    is_queued_ = false;
    if (failed_ == Status::kOk && digests_ > 0 && !order_.device->is_broken() && !digests_agree()) failed_ = Status::kCorrupt;
    digests_ = 0;
  }
  if (order_.device->is_broken()) failed_ = Status::kSystem;
  if (failed_ != Status::kOk) return failed_;
  if (stage_ != Stage::kDone) {
    if (parcel_ == nullptr) parcel_ = order_.device->take_parcel();
    const Status status = stage_ == Stage::kVerify ? queue_digests() : by_kernel_ ? queue_kernel() : queue_engine();
    order_.device->mark(lane_, parcel_);
    is_queued_ = true;
    // Told when the device is past what was queued before it went wrong.
    failed_ = status;
    return Status::kOk;
  }
  *is_done = true;
  order_.device->give_back(parcel_);
  parcel_ = nullptr;
  return Status::kOk;
}

void DeviceCopy::next_stage() {
  stage_ = stage_ == Stage::kCopy && !checked_.empty() ? Stage::kVerify : Stage::kDone;
  place_ = {};
}

// How many pieces from `first` on have rows of its shape: one launch has one shape.
size_t DeviceCopy::like_pieces(size_t first, size_t most) const {
  const std::vector<Transform::Piece>& all = order_.transform->pieces();
  size_t count = 1;
  while (count < most && first + count < all.size() && all[first + count].length == all[first].length &&
         all[first + count].count == all[first].count) {
    count++;
  }
  return count;
}

// `indices`: places in the block lists, empty where they are all in order.
KernelJob DeviceCopy::fill(const Place& from, size_t pieces, size_t blocks, std::span<const uint32_t> indices,
                           uint32_t chunk_bytes) {
  const std::vector<Transform::Piece>& all = order_.transform->pieces();
  for (size_t i = 0; i < pieces; i++) {
    const Transform::Piece& piece = all[from.piece + i];
    parcel_->pieces[i] = {piece.source,        piece.target,        piece.source_block_stride, piece.target_block_stride,
                          piece.source_stride, piece.target_stride};
  }
  auto* const lists = reinterpret_cast<uint32_t*>(parcel_->pieces + pieces);
  for (size_t i = 0; i < blocks; i++) {
    const size_t at = indices.empty() ? from.block + i : indices[from.block + i];
    lists[i] = order_.source_blocks[at];
    lists[blocks + i] = order_.target_blocks[at];
  }
  const Transform::Piece& first = all[from.piece];
  KernelJob job{};
  job.source_base = order_.source.kernel_address;
  job.target_base = order_.target.kernel_address;
  job.length = first.length;
  job.block_count = static_cast<uint32_t>(blocks);
  job.rows = first.count;
  job.chunk_bytes = chunk_bytes;
  job.chunks = static_cast<uint32_t>(ceiling(first.length, chunk_bytes));
  job.units = static_cast<uint32_t>(pieces * blocks) * job.rows * job.chunks;
  job.team = team_of(std::min<uint64_t>(first.length, chunk_bytes));
  return job;
}

Status DeviceCopy::queue_kernel() {
  const Transform::Piece& first = order_.transform->pieces()[place_.piece];
  const uint64_t each = first.length * first.count;
  const size_t pieces = like_pieces(place_.piece, std::clamp<uint64_t>(kKernelBytesMost / each, 1, kParcelPieces));
  const size_t blocks_most = std::clamp<uint64_t>(kKernelBytesMost / (each * pieces), 1, kParcelBlocks);
  const size_t blocks = std::min(order_.source_blocks.size() - place_.block, blocks_most);
  const KernelJob job = fill(place_, pieces, blocks, {}, kCopyChunkBytes);
  const bool is_bus = order_.source.device < 0 || order_.target.device < 0;
  const uint32_t groups = on_one_device(order_) ? kOnDeviceGroupsEach * static_cast<uint32_t>(order_.device->multiprocessors())
                          : is_bus              ? kBusGroups
                                                : kPeerGroups;
  place_.block += blocks;
  if (place_.block == order_.source_blocks.size()) place_ = {place_.piece + pieces, 0};
  if (place_.piece == order_.transform->pieces().size()) next_stage();
  return order_.device->launch_copy(lane_, *parcel_, job, static_cast<uint32_t>(pieces), groups);
}

Status DeviceCopy::queue_engine() {
  targets_.clear();
  sources_.clear();
  sizes_.clear();
  uint64_t bytes = 0;
  while (!cursor_.at_end() && bytes < kEngineBytesMost && sizes_.size() < kEngineCopiesMost) {
    const Stretch stretch = cursor_.peek(kEngineBytesMost - bytes);
    targets_.push_back(order_.target.address + stretch.target);
    sources_.push_back(order_.source.address + stretch.source);
    sizes_.push_back(stretch.length);
    cursor_.advance(stretch.length);
    bytes += stretch.length;
  }
  if (cursor_.at_end()) next_stage();
  return order_.device->copy(lane_, targets_.data(), sources_.data(), sizes_.data(), sizes_.size());
}

Status DeviceCopy::queue_digests() {
  const Transform::Piece& first = order_.transform->pieces()[place_.piece];
  // A row is cut so that all rows of a block fit; a block has at most kBlockTokensMax rows.
  const uint64_t chunks_most = std::max<uint64_t>(1, kParcelDigests / first.count);
  const uint64_t chunk = std::max<uint64_t>(kDigestChunkBytes, ceiling(ceiling(first.length, chunks_most), 16) * 16);
  const uint64_t units_each = ceiling(first.length, chunk) * first.count;
  const size_t pieces = like_pieces(place_.piece, std::clamp<uint64_t>(kParcelDigests / units_each, 1, kParcelPieces));
  const size_t blocks_most = std::clamp<uint64_t>(kParcelDigests / (units_each * pieces), 1, kParcelBlocks);
  const size_t blocks = std::min(checked_.size() - place_.block, blocks_most);
  const KernelJob job = fill(place_, pieces, blocks, checked_, static_cast<uint32_t>(chunk));
  digests_ = job.units;
  place_.block += blocks;
  if (place_.block == checked_.size()) place_ = {place_.piece + pieces, 0};
  if (place_.piece == order_.transform->pieces().size()) next_stage();
  return order_.device->launch_digests(lane_, *parcel_, job, static_cast<uint32_t>(pieces));
}

bool DeviceCopy::digests_agree() const {
  return std::memcmp(parcel_->digests, parcel_->digests + kParcelDigests, digests_ * sizeof(uint32_t)) == 0;
}

}  // namespace millrace::kv::cuda
