// Pools on the double's devices, whose memory the tests look into: a double's is the host's.
#pragma once

#include <memory>

#include "check.h"
#include "cuda_memory.h"
#include "cuda_pool.h"
#include "double/driver_double.h"

namespace millrace::kv::test {

// Of the engine's making: a mapping that is exported by descriptor.
inline std::unique_ptr<Pool> own_device_memory(uint64_t bytes) {
  std::unique_ptr<Pool> pool;
  std::string error;
  check(create_device_pool(0, bytes, &pool, &error) == Status::kOk, error);
  return pool;
}

// Of the caller's, as torch's: by cuMemAlloc, in the middle of an allocation. Lives as long as the process.
inline std::unique_ptr<Pool> torch_like_memory_of(int device, uint64_t bytes) {
  constexpr uint64_t kBefore = 512;
  std::unique_ptr<Pool> pool;
  std::string error;
  std::shared_ptr<cuda::PrimaryContext> holder;
  const cuda::Api* const api = cuda::library(&error);
  check(api != nullptr && cuda::PrimaryContext::hold(*api, device, &holder, &error) == Status::kOk, error);
  const cuda::Current current(*api, holder->context());
  cuda::DeviceAddress address = 0;
  check(api->cuMemAlloc(&address, bytes + kBefore) == cuda::kSuccess, "device memory");
  check(register_device_pool(device, address + kBefore, bytes, &pool, &error) == Status::kOk, error);
  return pool;
}
inline std::unique_ptr<Pool> torch_like_memory(uint64_t bytes) { return torch_like_memory_of(0, bytes); }
inline std::unique_ptr<Pool> other_device_memory(uint64_t bytes) { return torch_like_memory_of(1, bytes); }

// All ways to copy, one after the other: with and without batches, words and events.
template <class Test>
void with_each_driver(const Test& test) {
  for (const bool is_newer : {true, false}) {
    double_set_newer(is_newer, is_newer);
    test();
    double_reset();
  }
}

void index_random(std::mt19937& random, uint32_t cases);
void copy_checks(std::mt19937& random, uint32_t cases);
void cuda_contract();
void cuda_processes();
void cuda_faults();

}  // namespace millrace::kv::test
