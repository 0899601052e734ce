// Contexts, streams, parcels and launches. See cuda_device.h.
#include "cuda_device.h"

#include <algorithm>
#include <atomic>

#include "../cuda/kernels.h"

namespace millrace::kv::cuda {
namespace {

constexpr unsigned kGroupThreads = 256;
constexpr size_t kPiecesBytes = kParcelPieces * sizeof(KernelPiece);
constexpr size_t kArgumentBytes = kPiecesBytes + 2 * kParcelBlocks * sizeof(uint32_t);
constexpr size_t kDigestBytes = 2 * kParcelDigests * sizeof(uint32_t);
constexpr size_t kParcelBytes = kArgumentBytes + kDigestBytes;
// A word to a cache line, before all parcels.
constexpr size_t kWordBytes = 64;
constexpr size_t kWordsBytes = kParcels * kWordBytes;

// Of the images that are built in, the one that runs on this device as it is, else the one that its driver compiles.
const KernelImage* choose_image(int capability) {
  const KernelImage* found = nullptr;
  for (const KernelImage& image : kKernelImages) {
    const bool fits = image.is_ptx ? image.architecture <= capability
                                   : image.architecture / 10 == capability / 10 && image.architecture <= capability;
    if (fits && (found == nullptr || found->is_ptx || (!image.is_ptx && image.architecture > found->architecture))) found = &image;
  }
  return found;
}

}  // namespace

Status CudaDevice::open(const Api& api, int ordinal, std::unique_ptr<CudaDevice>* out, std::string* error) {
  std::unique_ptr<CudaDevice> made(new CudaDevice(api, ordinal));
  Result result = api.cuDeviceGet(&made->device_, ordinal);
  if (result != kSuccess) {
    *error = "device " + std::to_string(ordinal) + ": " + error_words(api, "cuDeviceGet", result);
    return Status::kNotFound;
  }
  const auto attribute = [&](int which) {
    int value = 0;
    return api.cuDeviceGetAttribute(&value, which, made->device_) == kSuccess ? value : 0;
  };
  if (attribute(kUnifiedAddressing) == 0) {
    *error = "device " + std::to_string(ordinal) + " shares no address space with the host";
    return Status::kUnsupported;
  }
  result = api.cuDevicePrimaryCtxRetain(&made->context_, made->device_);
  if (result != kSuccess) {
    made->context_ = nullptr;
    *error = "device " + std::to_string(ordinal) + ": " + error_words(api, "cuDevicePrimaryCtxRetain", result);
    return Status::kSystem;
  }
  made->multiprocessors_ = std::max(1, attribute(kMultiprocessorCount));
  made->capability_ = attribute(kComputeCapabilityMajor) * 10 + attribute(kComputeCapabilityMinor);
  made->has_word_writes_ = api.cuStreamWriteValue64 != nullptr && attribute(kCanUse64BitStreamMemOps) != 0;
  made->has_batches_ = api.cuMemcpyBatchAsync != nullptr;
  const Current current(api, made->context_);
  Status status = made->make_streams(error);
  if (status == Status::kOk) status = made->make_parcels(error);
  if (status != Status::kOk) return status;
  made->load_kernels();
  *out = std::move(made);
  return Status::kOk;
}

CudaDevice::~CudaDevice() {
  if (context_ == nullptr) return;
  {
    const Current current(api_, context_);
    synchronize();
    for (Parcel& parcel : parcels_) {
      if (parcel.event != nullptr) api_.cuEventDestroy(parcel.event);
    }
    if (module_ != nullptr) api_.cuModuleUnload(module_);
    if (arguments_ != 0) api_.cuMemFree(arguments_);
    if (pinned_ != nullptr) api_.cuMemFreeHost(pinned_);
    for (const Stream stream : streams_) {
      if (stream != nullptr) api_.cuStreamDestroy(stream);
    }
  }
  api_.cuDevicePrimaryCtxRelease(device_);
}

// At the lowest priority: a model's kernels go first.
Status CudaDevice::make_streams(std::string* error) {
  int least = 0;
  int greatest = 0;
  Result result = api_.cuCtxGetStreamPriorityRange(&least, &greatest);
  for (Stream& stream : streams_) {
    if (result == kSuccess) result = api_.cuStreamCreateWithPriority(&stream, kStreamNonBlocking, least);
  }
  if (result == kSuccess) return Status::kOk;
  *error = "device " + std::to_string(ordinal_) + ": " + error_words(api_, "cuStreamCreateWithPriority", result);
  return Status::kSystem;
}

Status CudaDevice::make_parcels(std::string* error) {
  const auto failed = [&](const char* doing, Result result) {
    *error = "device " + std::to_string(ordinal_) + ": " + error_words(api_, doing, result);
    return Status::kSystem;
  };
  const size_t bytes = kWordsBytes + kParcels * kParcelBytes;
  Result result = api_.cuMemHostAlloc(&pinned_, bytes, kHostAllocPortable | kHostAllocDeviceMap);
  if (result != kSuccess) {
    pinned_ = nullptr;
    return failed("cuMemHostAlloc", result);
  }
  DeviceAddress pinned_device = 0;
  result = api_.cuMemHostGetDevicePointer(&pinned_device, pinned_, 0);
  if (result != kSuccess) return failed("cuMemHostGetDevicePointer", result);
  result = api_.cuMemAlloc(&arguments_, kParcels * kArgumentBytes);
  if (result != kSuccess) {
    arguments_ = 0;
    return failed("cuMemAlloc", result);
  }
  parcels_.resize(kParcels);
  for (size_t i = 0; i < kParcels; i++) {
    Parcel& parcel = parcels_[i];
    uint8_t* const host = static_cast<uint8_t*>(pinned_) + kWordsBytes + i * kParcelBytes;
    parcel.pieces = reinterpret_cast<KernelPiece*>(host);
    parcel.digests = reinterpret_cast<uint32_t*>(host + kArgumentBytes);
    parcel.digests_device = pinned_device + kWordsBytes + i * kParcelBytes + kArgumentBytes;
    parcel.device = arguments_ + i * kArgumentBytes;
    parcel.word = reinterpret_cast<uint64_t*>(static_cast<uint8_t*>(pinned_) + i * kWordBytes);
    parcel.word_device = pinned_device + i * kWordBytes;
    *parcel.word = 0;
    free_.push_back(&parcel);
    result = api_.cuEventCreate(&parcel.event, kEventDisableTiming);
    if (result != kSuccess) return failed("cuEventCreate", result);
  }
  return Status::kOk;
}

// Without kernels the device still copies, in more calls.
void CudaDevice::load_kernels() {
  const KernelImage* const image = choose_image(capability_);
  if (image == nullptr || api_.cuModuleLoadData(&module_, image->words) != kSuccess) {
    module_ = nullptr;
    return;
  }
  const bool has_both = api_.cuModuleGetFunction(&copy_, module_, "millrace_copy") == kSuccess &&
                        api_.cuModuleGetFunction(&digest_, module_, "millrace_digest") == kSuccess;
  if (!has_both) copy_ = digest_ = nullptr;
}

Parcel* CudaDevice::take_parcel() {
  if (free_.empty()) return nullptr;
  Parcel* const parcel = free_.back();
  free_.pop_back();
  return parcel;
}

Status CudaDevice::outcome(Result result) { return result == kSuccess ? Status::kOk : Status::kSystem; }

Status CudaDevice::copy(Lane lane, DeviceAddress* targets, DeviceAddress* sources, size_t* bytes, size_t count) {
  const Current current(api_, context_);
  const Stream stream = streams_[static_cast<size_t>(lane)];
  if (has_batches_ && count > 1) {
    // Nothing that is on its way writes what we read, so sources may be read at any time.
    CopyAttributes attributes{kSourceOrderAny, {}, {}, kPreferOverlapWithCompute};
    size_t begin = 0;
    size_t failed = 0;
    const Result result = api_.cuMemcpyBatchAsync(targets, sources, bytes, count, &attributes, &begin, 1, &failed, stream);
    if (result != kNotSupported) return outcome(result);
    has_batches_ = false;
  }
  for (size_t i = 0; i < count; i++) {
    const Result result = api_.cuMemcpyAsync(targets[i], sources[i], bytes[i], stream);
    if (result != kSuccess) return outcome(result);
  }
  return Status::kOk;
}

// One copy brings the arguments to the device: a kernel that read them from the host would wait for each of them.
Status CudaDevice::upload(Lane lane, const Parcel& parcel, KernelJob* job, uint32_t pieces) {
  const size_t pieces_bytes = pieces * sizeof(KernelPiece);
  const size_t list_bytes = job->block_count * sizeof(uint32_t);
  job->pieces = parcel.device;
  job->source_blocks = parcel.device + pieces_bytes;
  job->target_blocks = job->source_blocks + list_bytes;
  return outcome(api_.cuMemcpyAsync(parcel.device, reinterpret_cast<uintptr_t>(parcel.pieces), pieces_bytes + 2 * list_bytes,
                                    streams_[static_cast<size_t>(lane)]));
}

Status CudaDevice::launch(Function function, Lane lane, void* argument, uint32_t groups) {
  void* arguments[] = {argument};
  return outcome(api_.cuLaunchKernel(function, groups, 1, 1, kGroupThreads, 1, 1, 0, streams_[static_cast<size_t>(lane)],
                                     arguments, nullptr));
}

Status CudaDevice::launch_copy(Lane lane, const Parcel& parcel, KernelJob job, uint32_t pieces, uint32_t groups_most) {
  const Current current(api_, context_);
  const Status status = upload(lane, parcel, &job, pieces);
  if (status != Status::kOk) return status;
  const uint64_t threads = uint64_t{job.units} * job.team;
  const uint64_t groups = std::min<uint64_t>((threads + kGroupThreads - 1) / kGroupThreads, groups_most);
  return launch(copy_, lane, &job, static_cast<uint32_t>(groups));
}

Status CudaDevice::launch_digests(Lane lane, const Parcel& parcel, KernelJob job, uint32_t pieces) {
  const Current current(api_, context_);
  Status status = upload(lane, parcel, &job, pieces);
  const uint32_t groups = std::min((job.units + kGroupThreads - 1) / kGroupThreads, static_cast<uint32_t>(multiprocessors_) * 4);
  for (uint32_t side = 0; side < 2 && status == Status::kOk; side++) {
    DigestJob digest{job, parcel.digests_device + side * kParcelDigests * sizeof(uint32_t), side, 0};
    status = launch(digest_, lane, &digest, groups);
  }
  return status;
}

void CudaDevice::mark(Lane lane, Parcel* parcel) {
  const Current current(api_, context_);
  const Stream stream = streams_[static_cast<size_t>(lane)];
  parcel->awaited++;
  const Result result = has_word_writes_
                            ? api_.cuStreamWriteValue64(stream, parcel->word_device, parcel->awaited, kStreamWriteValueDefault)
                            : api_.cuEventRecord(parcel->event, stream);
  if (result == kSuccess) return;
  // Nobody will say when it is past, so that has to be now.
  if (api_.cuStreamSynchronize(stream) != kSuccess) is_broken_ = true;
  std::atomic_ref(*parcel->word).store(parcel->awaited, std::memory_order_relaxed);
}

bool CudaDevice::is_past(const Parcel& parcel) {
  if (is_broken_ || std::atomic_ref(*parcel.word).load(std::memory_order_acquire) == parcel.awaited) return true;
  if (has_word_writes_) return false;
  const Current current(api_, context_);
  const Result result = api_.cuEventQuery(parcel.event);
  if (result == kNotReady) return false;
  if (result != kSuccess) is_broken_ = true;
  std::atomic_ref(*parcel.word).store(parcel.awaited, std::memory_order_relaxed);
  return true;
}

void CudaDevice::look() {
  if (is_broken_ || free_.size() == kParcels) return;
  const Current current(api_, context_);
  for (const Stream stream : streams_) {
    const Result result = api_.cuStreamQuery(stream);
    if (result != kSuccess && result != kNotReady) is_broken_ = true;
  }
}

void CudaDevice::synchronize() {
  const Current current(api_, context_);
  for (const Stream stream : streams_) {
    if (stream != nullptr && api_.cuStreamSynchronize(stream) != kSuccess) is_broken_ = true;
  }
}

}  // namespace millrace::kv::cuda
