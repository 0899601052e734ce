// What the files of the driver double share: see driver_double.cc.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "../../../transport/cuda_api.h"
#include "driver_double.h"

namespace millrace::driver_double {

using millrace::kv::cuda::Result;
using millrace::kv::cuda::kSuccess;

inline constexpr int kDevices = 2;
inline constexpr Result kInvalidValue = 1;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kInvalidDevice = 101;
inline constexpr Result kNoContext = 201;
inline constexpr Result kAlreadyRegistered = 712;
inline constexpr Result kIllegalAddress = 700;
inline constexpr Result kNotFoundResult = 500;
inline constexpr size_t kGranularity = size_t{2} << 20;

enum class Kind : uint8_t { kDevice, kHost, kImport, kReserved };

struct Memory {
  Kind kind;
  uint64_t bytes;
  int device = -1;
  int descriptor = -1;
  bool is_accessible = true;
  // By cuMemMap rather than by cuMemAlloc.
  bool is_mapping = false;
  uint64_t identity = 0;
};

struct State {
  std::recursive_mutex lock;
  std::map<uint64_t, Memory> memory;
  std::map<uint64_t, int> allocations;  // of cuMemCreate: descriptors
  uint64_t made = 0;
  std::map<std::string, int> failing;
  std::map<std::string, uint32_t> calls;
  std::atomic<bool> is_held{false};
  std::atomic<bool> is_broken[kDevices] = {};
  std::atomic<uint32_t> faults{0};
  bool has_batches = true;
  bool has_word_writes = true;
  int retained[kDevices] = {};
};


State& state();
// Of this thread: numbers of devices.
std::vector<int>& context_stack();
int& capture_mode();

// Counts the call; what it is to fail with.
Result called(const char* function, bool needs_context = true);

#define CALLED(...)                                                        \
  do {                                                                     \
    const Result result_of_call = called(__func__ __VA_OPT__(, ) __VA_ARGS__); \
    if (result_of_call != kSuccess) return result_of_call;                 \
  } while (false)

// The memory that holds these bytes, under the state's lock; null where there is none that may be touched.
const std::pair<const uint64_t, Memory>* find(uint64_t address, uint64_t bytes);
// A fault where it may not.
bool may_touch(uint64_t address, uint64_t bytes);

}  // namespace millrace::driver_double
