// One operation's copy by a device (K3): which way it goes, by kernel or by copy engine, cut into pieces of work that fit a
// parcel, each queued whole, and the next one when the device is past it; at last, where that is wanted, both sides are
// digested by the device and compared. Owned by the operation; progress thread only. Nothing here waits.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "copy.h"
#include "cuda_device.h"
#include "plan.h"

namespace millrace::kv::cuda {

// Fragments below this go by kernel where there are at least so many: a copy engine does each for the price of a large one
// (on an H100 4 to 16 KiB go at 4 to 7 GB/s of 52).
inline constexpr uint64_t kKernelFragmentBytes = 28 * 1024;
inline constexpr uint64_t kKernelFragments = 16;
// On one device a kernel has the whole memory's speed, and a copy engine a part of it.
inline constexpr uint64_t kOnDeviceFragmentBytes = uint64_t{4} << 20;

// One side of a copy: a pool's first byte.
struct Side {
  // As copy engines name it, and as kernels of the device that copies do; 0 where those cannot reach it.
  DeviceAddress address = 0;
  DeviceAddress kernel_address = 0;
  // -1: host.
  int device = -1;
};

struct CopyOrder {
  CudaDevice* device = nullptr;
  Side source, target;
  std::shared_ptr<const Transform> transform;
  // These stay until the copy is dropped.
  std::span<const uint32_t> source_blocks, target_blocks;
  std::span<const Run> runs;
  Integrity integrity = Integrity::kOff;
};

// Whether a kernel does it, of so many bytes in so many fragments.
bool goes_by_kernel(const CopyOrder& order, uint64_t bytes, uint64_t fragments);

class DeviceCopy {
 public:
  // Integrity other than kOff needs kernels that reach both sides.
  explicit DeviceCopy(const CopyOrder& order);
  ~DeviceCopy();
  DeviceCopy(const DeviceCopy&) = delete;

  // Queues the next piece of work, or looks at what came of the last. kSystem once the device is broken, kCorrupt where the
  // digests differ.
  Status step(bool* is_done);
  // The device is past what was queued, and there is room for more.
  bool is_ready() const;
  bool is_quiet() const;

 private:
  // Which pieces and blocks the next launch begins with.
  struct Place {
    size_t piece = 0;
    size_t block = 0;
  };
  enum class Stage : uint8_t { kCopy, kVerify, kDone };

  Status queue_kernel();
  Status queue_engine();
  Status queue_digests();
  bool digests_agree() const;
  KernelJob fill(const Place& from, size_t pieces, size_t blocks, std::span<const uint32_t> indices, uint32_t chunk_bytes);
  size_t like_pieces(size_t first, size_t most) const;
  void next_stage();

  CopyOrder order_;
  Lane lane_;
  bool by_kernel_;
  Stage stage_ = Stage::kCopy;
  Parcel* parcel_ = nullptr;
  bool is_queued_ = false;
  Status failed_ = Status::kOk;
  Place place_;
  RunCursor cursor_;
  // Places in the block lists of the blocks that are checked.
  std::vector<uint32_t> checked_;
  uint32_t digests_ = 0;
  std::vector<DeviceAddress> targets_, sources_;
  std::vector<size_t> sizes_;
};

}  // namespace millrace::kv::cuda
