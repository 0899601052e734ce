// A double of the driver's library, for tests of our state machine on machines without a GPU. It is not a GPU, and says
// nothing about one: "device" memory is shared memory of the host, a stream is a thread that does one thing after another,
// handles of memory are files of this process, and kernels are the source of native/cuda/kernels.cu run thread by thread
// on the CPU. Stricter than a driver where a mistake of ours would else go unseen: every access is checked against what is
// allocated, opened or registered at the time of the access. Built with the soname libcuda.so.1, so that the transport,
// which opens that name, gets it.
#include <dlfcn.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <thread>

#include "double_state.h"

#define __global__
#define __device__
#define __launch_bounds__(threads)
namespace {
struct Dimensions {
  unsigned x;
};
thread_local Dimensions threadIdx, blockIdx, blockDim, gridDim;
}  // namespace
#include "../../../cuda/kernels.cu"

using namespace millrace::kv::cuda;
using namespace millrace::driver_double;
using millrace::kv::DigestJob;
using millrace::kv::KernelJob;
using millrace::kv::UnitSpan;

namespace {

struct StreamState {
  int device = 0;
  std::mutex lock;
  std::condition_variable changed;
  std::deque<std::function<void()>> work;
  bool is_busy = false;
  bool is_ending = false;
  std::thread thread;
};

struct EventState {
  std::atomic<uint64_t> recorded{0}, past{0};
};

void queue(Stream stream, std::function<void()> work) {
  auto* const to = reinterpret_cast<StreamState*>(stream);
  const std::lock_guard guard(to->lock);
  to->work.push_back(std::move(work));
  to->changed.notify_all();
}

void serve(StreamState* stream) {
  std::unique_lock guard(stream->lock);
  for (;;) {
    const bool is_held = state().is_held.load();
    if (stream->work.empty() || is_held) {
      if (stream->is_ending && stream->work.empty()) return;
      stream->changed.wait_for(guard, std::chrono::milliseconds(is_held ? 1 : 50));
      continue;
    }
    std::function<void()> next = std::move(stream->work.front());
    stream->work.pop_front();
    stream->is_busy = true;
    guard.unlock();
    if (!state().is_broken[stream->device].load()) next();
    guard.lock();
    stream->is_busy = false;
    stream->changed.notify_all();
  }
}

bool is_idle(StreamState& stream) { return stream.work.empty() && !stream.is_busy; }

void run_threads(unsigned groups, unsigned threads, const std::function<void()>& kernel) {
  gridDim.x = groups;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < groups; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) kernel();
}

// Every span of a launch, before it runs.
bool may_run(const KernelJob& job, bool reads_both) {
  for (uint32_t unit = 0; unit < job.units; unit++) {
    const UnitSpan span = millrace::kv::span_of(job, reinterpret_cast<const millrace::kv::KernelPiece*>(job.pieces),
                                                reinterpret_cast<const uint32_t*>(job.source_blocks),
                                                reinterpret_cast<const uint32_t*>(job.target_blocks), unit);
    if (!may_touch(span.source, span.length)) return false;
    if (reads_both && !may_touch(span.target, span.length)) return false;
  }
  return true;
}

}  // namespace

extern "C" {

void double_hold(bool holds) { state().is_held = holds; }
void double_fail_next(const char* function, int result) {
  const std::lock_guard guard(state().lock);
  state().failing[function] = result;
}
void double_break(int device) { state().is_broken[device] = true; }
void double_set_newer(bool has_batches, bool has_word_writes) {
  state().has_batches = has_batches;
  state().has_word_writes = has_word_writes;
}
void double_reset() {
  const std::lock_guard guard(state().lock);
  state().is_held = false;
  for (auto& is_broken : state().is_broken) is_broken = false;
  state().failing.clear();
  state().faults = 0;
  state().has_batches = state().has_word_writes = true;
}
uint32_t double_faults() { return state().faults; }
uint32_t double_calls(const char* function) {
  const std::lock_guard guard(state().lock);
  return state().calls[function];
}
uint32_t double_open_things() {
  const std::lock_guard guard(state().lock);
  uint32_t contexts = 0;
  for (const int retained : state().retained) contexts += static_cast<uint32_t>(retained);
  return static_cast<uint32_t>(state().memory.size() + state().allocations.size() + context_stack().size()) + contexts;
}

Result cuInit(unsigned) { return called("cuInit", false); }
Result cuDriverGetVersion(int* version) {
  *version = 12080;
  return kSuccess;
}
Result cuGetErrorName(Result error, const char** name) {
  *name = error == kIllegalAddress ? "CUDA_ERROR_ILLEGAL_ADDRESS" : error == kOutOfMemory ? "CUDA_ERROR_OUT_OF_MEMORY" : nullptr;
  return *name == nullptr ? kInvalidValue : kSuccess;
}
Result cuDeviceGetCount(int* count) {
  *count = kDevices;
  return kSuccess;
}
Result cuDeviceGet(Device* device, int ordinal) {
  *device = ordinal;
  return ordinal >= 0 && ordinal < kDevices ? kSuccess : kInvalidDevice;
}
Result cuDeviceGetName(char* name, int bytes, Device) {
  std::strncpy(name, "driver double", static_cast<size_t>(bytes));
  return kSuccess;
}
Result cuDeviceGetAttribute(int* value, int attribute, Device) {
  const std::map<int, int> values = {{kMultiprocessorCount, 2},     {kUnifiedAddressing, 1}, {kComputeCapabilityMajor, 9},
                                     {kVirtualMemoryManagement, 1}, {kHandleTypePosixFd, 1},
                                     {kCanUse64BitStreamMemOps, state().has_word_writes ? 1 : 0}};
  const auto found = values.find(attribute);
  *value = found == values.end() ? 0 : found->second;
  return kSuccess;
}
Result cuDeviceGetUuid_v2(Uuid* uuid, Device device) {
  std::memset(uuid->bytes, 0xd0 + device, sizeof uuid->bytes);
  return kSuccess;
}
Result cuDeviceCanAccessPeer(int* can, Device device, Device peer) {
  *can = device != peer ? 1 : 0;
  return kSuccess;
}
Result cuDevicePrimaryCtxRetain(Context* context, Device device) {
  CALLED(false);
  const std::lock_guard guard(state().lock);
  state().retained[device]++;
  *context = reinterpret_cast<Context>(static_cast<uintptr_t>(device + 1));
  return kSuccess;
}
Result cuDevicePrimaryCtxRelease_v2(Device device) {
  const std::lock_guard guard(state().lock);
  state().retained[device]--;
  return kSuccess;
}
Result cuCtxPushCurrent_v2(Context context) {
  context_stack().push_back(static_cast<int>(reinterpret_cast<uintptr_t>(context)) - 1);
  return kSuccess;
}
Result cuCtxPopCurrent_v2(Context* context) {
  if (context_stack().empty()) return kNoContext;
  *context = reinterpret_cast<Context>(static_cast<uintptr_t>(context_stack().back() + 1));
  context_stack().pop_back();
  return kSuccess;
}
Result cuThreadExchangeStreamCaptureMode(int* mode) {
  std::swap(*mode, capture_mode());
  return kSuccess;
}
Result cuCtxEnablePeerAccess(Context, unsigned) { return called(__func__); }
Result cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return called(__func__);
}

Result cuMemcpyAsync(DeviceAddress target, DeviceAddress source, size_t bytes, Stream stream) {
  CALLED();
  queue(stream, [=] {
    if (may_touch(source, bytes) && may_touch(target, bytes))
      std::memcpy(reinterpret_cast<void*>(target), reinterpret_cast<const void*>(source), bytes);
  });
  return kSuccess;
}
Result cuMemcpyBatchAsync(DeviceAddress* targets, DeviceAddress* sources, size_t* bytes, size_t count, CopyAttributes* attributes,
                          size_t* begins, size_t attribute_count, size_t* failed, Stream stream) {
  CALLED();
  if (!state().has_batches) return millrace::kv::cuda::kNotSupported;
  if (attribute_count != 1 || begins[0] != 0 || attributes->source_access_order != kSourceOrderAny) return kInvalidValue;
  *failed = SIZE_MAX;
  // Without any order among them: from the last.
  for (size_t i = count; i-- > 0;) {
    const DeviceAddress target = targets[i];
    const DeviceAddress source = sources[i];
    const size_t size = bytes[i];
    queue(stream, [=] {
      if (may_touch(source, size) && may_touch(target, size))
        std::memcpy(reinterpret_cast<void*>(target), reinterpret_cast<const void*>(source), size);
    });
  }
  return kSuccess;
}

Result cuStreamCreateWithPriority(Stream* stream, unsigned, int) {
  CALLED();
  auto* const made = new StreamState;
  made->device = context_stack().back();
  made->thread = std::thread(serve, made);
  *stream = reinterpret_cast<Stream>(made);
  return kSuccess;
}
Result cuStreamSynchronize(Stream stream) {
  CALLED();
  // The default stream: what is given to it is done at once here.
  if (stream == nullptr) return kSuccess;
  auto* const which = reinterpret_cast<StreamState*>(stream);
  std::unique_lock guard(which->lock);
  which->changed.wait(guard, [&] { return is_idle(*which); });
  return state().is_broken[which->device] ? kIllegalAddress : kSuccess;
}
Result cuStreamDestroy_v2(Stream stream) {
  CALLED();
  auto* const which = reinterpret_cast<StreamState*>(stream);
  {
    const std::lock_guard guard(which->lock);
    which->is_ending = true;
    which->changed.notify_all();
  }
  which->thread.join();
  delete which;
  return kSuccess;
}
Result cuStreamQuery(Stream stream) {
  CALLED();
  auto* const which = reinterpret_cast<StreamState*>(stream);
  if (state().is_broken[which->device]) return kIllegalAddress;
  const std::lock_guard guard(which->lock);
  return is_idle(*which) ? kSuccess : kNotReady;
}
Result cuStreamWriteValue64_v2(Stream stream, DeviceAddress address, uint64_t value, unsigned) {
  CALLED();
  queue(stream, [=] {
    if (may_touch(address, sizeof value))
      std::atomic_ref(*reinterpret_cast<uint64_t*>(address)).store(value, std::memory_order_release);
  });
  return kSuccess;
}
Result cuEventCreate(Event* event, unsigned) {
  CALLED();
  *event = reinterpret_cast<Event>(new EventState);
  return kSuccess;
}
Result cuEventDestroy_v2(Event event) {
  CALLED();
  delete reinterpret_cast<EventState*>(event);
  return kSuccess;
}
Result cuEventRecord(Event event, Stream stream) {
  CALLED();
  auto* const which = reinterpret_cast<EventState*>(event);
  const uint64_t count = ++which->recorded;
  queue(stream, [which, count] { which->past.store(count, std::memory_order_release); });
  return kSuccess;
}
Result cuEventQuery(Event event) {
  CALLED();
  auto* const which = reinterpret_cast<EventState*>(event);
  return which->past.load(std::memory_order_acquire) == which->recorded.load() ? kSuccess : kNotReady;
}

Result cuModuleLoadData(Module* module, const void* image) {
  CALLED();
  const bool is_known = std::memcmp(image, "\177ELF", 4) == 0 || std::memcmp(image, "\n.version", 9) == 0;
  *module = reinterpret_cast<Module>(uintptr_t{1});
  return is_known ? kSuccess : kInvalidValue;
}
Result cuModuleUnload(Module) { return called(__func__); }
Result cuModuleGetFunction(Function* function, Module, const char* name) {
  CALLED();
  const bool is_copy = std::strcmp(name, "millrace_copy") == 0;
  if (!is_copy && std::strcmp(name, "millrace_digest") != 0) return kNotFoundResult;
  *function = reinterpret_cast<Function>(uintptr_t{is_copy ? 1u : 2u});
  return kSuccess;
}
Result cuLaunchKernel(Function function, unsigned groups, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned,
                      Stream stream, void** arguments, void**) {
  CALLED();
  if (groups == 0 || threads == 0 || threads % 32 != 0) return kInvalidValue;
  if (reinterpret_cast<uintptr_t>(function) == 1) {
    const KernelJob job = *static_cast<const KernelJob*>(arguments[0]);
    queue(stream, [=] {
      if (may_run(job, true)) run_threads(groups, threads, [&] { millrace::kv::millrace_copy(job); });
    });
  } else {
    const DigestJob digest = *static_cast<const DigestJob*>(arguments[0]);
    queue(stream, [=] {
      if (may_run(digest.job, true) && may_touch(digest.digests, digest.job.units * sizeof(uint32_t)))
        run_threads(groups, threads, [&] { millrace::kv::millrace_digest(digest); });
    });
  }
  return kSuccess;
}

// Not those of events, so that looking up by name is seen to work too.
Result cuGetProcAddress_v2(const char* name, void** out, int version, uint64_t, int*) {
  const std::string asked = name;
  *out = nullptr;
#define DOUBLE_FUNCTION(required, function, least, symbol, arguments) \
  if (asked == #function && version >= least && asked.find("Event") == asked.npos) *out = dlsym(RTLD_DEFAULT, symbol);
  MILLRACE_CUDA_FUNCTIONS(DOUBLE_FUNCTION)
#undef DOUBLE_FUNCTION
  return *out == nullptr ? kNotFoundResult : kSuccess;
}

}  // extern "C"
