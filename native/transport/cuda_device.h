// One GPU as the cuda transport uses it (K3): its primary context, which the rest of the process shares, a stream for each
// direction, our kernels, and parcels: pinned memory that carries the arguments of one piece of work and the word by which
// the device says that it is past it. Called by the agent's progress thread only; nothing here waits but `synchronize`.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "../cuda/index_map.h"
#include "cuda_library.h"

namespace millrace::kv::cuda {

// Pieces of work on a device at once, and what one may carry.
inline constexpr uint32_t kParcels = 32;
inline constexpr uint32_t kParcelPieces = 2048;
inline constexpr uint32_t kParcelBlocks = 16'384;
inline constexpr uint32_t kParcelDigests = 65'536;  // of each side

// Copies of different directions go side by side, those of one in order.
enum class Lane : uint8_t { kToDevice = 0, kFromDevice = 1, kOnDevice = 2 };

struct Parcel {
  // In the host's memory: up to kParcelPieces, directly behind those in use the lists of source and target blocks, each of
  // up to kParcelBlocks.
  KernelPiece* pieces = nullptr;
  uint32_t* digests = nullptr;  // of both sides
  DeviceAddress device = 0;  // where the device has the arguments
  DeviceAddress digests_device = 0;
  uint64_t* word = nullptr;
  DeviceAddress word_device = 0;
  uint64_t awaited = 0;
  Event event = nullptr;
};

class CudaDevice {
 public:
  static Status open(const Api& api, int ordinal, std::unique_ptr<CudaDevice>* out, std::string* error);
  // Waits for what is queued.
  ~CudaDevice();
  CudaDevice(const CudaDevice&) = delete;

  int ordinal() const { return ordinal_; }
  Context context() const { return context_; }
  // False where no image of the kernels fits the device, or its driver: then it copies without.
  bool has_kernels() const { return copy_ != nullptr; }

  bool has_parcel() const { return !free_.empty(); }
  // Null when all are out.
  Parcel* take_parcel();
  // The device is past it.
  void give_back(Parcel* parcel) { free_.push_back(parcel); }

  // These queue work on a stream. After a failure what was queued before may still run, so `mark` is due all the same.
  Status copy(Lane lane, DeviceAddress* targets, DeviceAddress* sources, size_t* bytes, size_t count);
  // The job's pieces, so many, and its blocks are in the parcel.
  Status launch_copy(Lane lane, const Parcel& parcel, KernelJob job, uint32_t pieces, uint32_t groups_most);
  // Digests of both sides, the source's first, `kParcelDigests` apart.
  Status launch_digests(Lane lane, const Parcel& parcel, KernelJob job, uint32_t pieces);
  // The parcel's word changes once the stream has done all before it. Waits for the stream where that cannot be had.
  void mark(Lane lane, Parcel* parcel);
  bool is_past(const Parcel& parcel);

  // Looks for an error of the device, after which nothing runs there any more: all its work is past, and worthless.
  void look();
  bool is_broken() const { return is_broken_; }
  int multiprocessors() const { return multiprocessors_; }
  void synchronize();

 private:
  CudaDevice(const Api& api, int ordinal) : api_(api), ordinal_(ordinal) {}
  Status make_streams(std::string* error);
  Status make_parcels(std::string* error);
  void load_kernels();
  Status upload(Lane lane, const Parcel& parcel, KernelJob* job, uint32_t pieces);
  Status launch(Function function, Lane lane, void* argument, uint32_t groups);
  Status outcome(Result result);

  const Api& api_;
  int ordinal_;
  Device device_ = 0;
  Context context_ = nullptr;
  int multiprocessors_ = 1;
  int capability_ = 0;
  bool has_word_writes_ = false;
  bool has_batches_ = false;
  bool is_broken_ = false;
  std::array<Stream, 3> streams_ = {};
  Module module_ = nullptr;
  Function copy_ = nullptr;
  Function digest_ = nullptr;
  void* pinned_ = nullptr;
  DeviceAddress arguments_ = 0;
  std::vector<Parcel> parcels_;
  std::vector<Parcel*> free_;
};

}  // namespace millrace::kv::cuda
