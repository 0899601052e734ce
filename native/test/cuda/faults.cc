// Errors of the driver at every call that an operation makes: it fails with kSystem, its bytes quiet, everything is given
// back, and where the device is not lost the next operation works.
#include <algorithm>

#include "device_memory.h"
#include "node.h"
#include "transports.h"

namespace millrace::kv::test {
namespace {

std::unique_ptr<Pool> device_pool(uint32_t blocks, uint32_t block_bytes) {
  std::unique_ptr<Pool> pool = own_device_memory(uint64_t{blocks} * block_bytes);
  Layout layout;
  std::string error;
  check(Layout::opaque(block_bytes, block_bytes, blocks, pool->bytes(), &layout, &error) == Status::kOk, error);
  pool->set_layout(layout);
  check(pool->create_table(blocks, &error) == Status::kOk, error);
  return pool;
}

// 32 blocks of 4 KiB go by kernel, 8 of 64 KiB on the bus by engine.
struct Rig {
  explicit Rig(bool is_host_there, uint32_t block_bytes) {
    const auto make = [&](PoolMaker maker) { return Node::make(cuda_transport(), 64, block_bytes, {}, 64, maker); };
    a = make(device_pool);
    b = make(is_host_there ? make_host_pool : device_pool);
    to_b = a.meet(b);
    b.meet(a);
  }
  Status read(uint32_t blocks) {
    TransferRequest request;
    std::string error;
    std::vector<std::pair<uint32_t, uint32_t>> taken;
    request.peer = to_b;
    request.local_pool = a.pool_id;
    request.remote_pool = b.pool_id;
    for (uint32_t i = 0; i < blocks; i++) {
      uint32_t generation;
      request.local_blocks.push_back(a.take(1, false, &generation));
      taken.push_back({request.local_blocks.back(), generation});
      request.remote_blocks.push_back(b.take(++tag << 20, true, &generation));
      request.remote_generations.push_back(generation);
    }
    // Against the order there, so that no neighbours merge.
    std::reverse(request.local_blocks.begin(), request.local_blocks.end());
    const int64_t id = a.agent->submit(request, &error);
    check(id > 0, error);
    const Status status = a.completion(id).status;
    for (uint32_t i = 0; i < blocks; i++) {
      check(status != Status::kOk || holds(*a.pool, request.local_blocks[i], (tag - blocks + 1 + i) << 20), "the bytes are there");
      check(a.pool->table()->release(taken[i].first, taken[i].second) == Status::kOk, "released here");
      check(b.pool->table()->release(request.remote_blocks[i], request.remote_generations[i]) == Status::kOk, "released there");
    }
    a.pool->table()->settle();
    b.pool->table()->settle();
    check(a.pool->table()->stats().free == 64 && b.pool->table()->stats().free == 64, "no block is kept back");
    return status;
  }
  Node a, b;
  uint32_t to_b = 0;
  uint64_t tag = 0;
};

void fails_once(const char* function, bool is_host_there, uint32_t blocks, uint32_t block_bytes) {
  Rig rig(is_host_there, block_bytes);
  double_fail_next(function, 719);
  const Status status = rig.read(blocks);
  // A failure to mark is made up for by waiting.
  const bool is_made_up = std::string(function) == "cuStreamWriteValue64_v2";
  check(status == (is_made_up ? Status::kOk : Status::kSystem), std::string(function) + ": " + status_name(status));
  check(rig.read(blocks) == Status::kOk, std::string("after a failed ") + function);
  check(rig.a.agent->remove_pool(rig.a.pool_id) == Status::kOk, "the pool can go");
}

// What a driver says of work that it was asked about long after it took it is said of the device.
void looking_fails() {
  Rig rig(true, 64 * 1024);
  double_fail_next("cuEventQuery", 719);
  check(rig.read(8) == Status::kSystem && rig.read(8) == Status::kSystem, "the device is lost");
}

// Work is thrown away, and every call says so from then on.
void device_is_lost() {
  Rig rig(false, 4096);
  check(rig.read(4) == Status::kOk, "at first it works");
  double_hold(true);
  TransferRequest request;
  std::string error;
  request.peer = rig.to_b;
  request.local_pool = rig.a.pool_id;
  request.remote_pool = rig.b.pool_id;
  uint32_t generation;
  request.local_blocks = {rig.a.take(1, false, &generation)};
  request.remote_blocks = {rig.b.take(2, true, &generation)};
  request.remote_generations = {generation};
  const int64_t id = rig.a.agent->submit(request, &error);
  check(id > 0, error);
  double_break(0);
  double_hold(false);
  check(rig.a.completion(id).status == Status::kSystem, "what was queued fails");
  const int64_t next = rig.a.agent->submit(request, &error);
  check(next > 0 && rig.a.completion(next).status == Status::kSystem, "and what comes after");
  rig.a.agent->close();
  rig.b.agent->close();
}

// More at once than there are parcels: all are served, in turns.
void many_at_once() {
  Rig rig(false, 4096);
  double_hold(true);
  std::vector<int64_t> ids;
  std::string error;
  for (uint32_t i = 0; i < 60; i++) {
    TransferRequest request;
    uint32_t generation;
    request.peer = rig.to_b;
    request.local_pool = rig.a.pool_id;
    request.remote_pool = rig.b.pool_id;
    request.local_blocks = {rig.a.take(1, false, &generation)};
    request.remote_blocks = {rig.b.take(i, true, &generation)};
    request.remote_generations = {generation};
    ids.push_back(rig.a.agent->submit(request, &error));
    check(ids.back() > 0, error);
  }
  rig.a.agent->cancel(static_cast<uint64_t>(ids[59]));
  double_hold(false);
  for (uint32_t i = 0; i < 60; i++) {
    const Status status = rig.a.completion(ids[i]).status;
    check(status == Status::kOk || (i == 59 && status == Status::kCancelled), status_name(status));
  }
}

}  // namespace

void cuda_faults() {
  for (const char* function : {"cuLaunchKernel", "cuMemcpyAsync", "cuStreamWriteValue64_v2"}) {
    fails_once(function, false, 32, 4096);
    fails_once(function, true, 32, 4096);
  }
  fails_once("cuMemcpyBatchAsync", true, 8, 64 * 1024);
  fails_once("cuMemHostRegister_v2", true, 8, 64 * 1024);
  fails_once("cuStreamCreateWithPriority", false, 8, 64 * 1024);
  double_set_newer(false, false);
  looking_fails();
  double_reset();
  device_is_lost();
  double_reset();
  many_at_once();
  std::string error;
  std::unique_ptr<Pool> pool;
  check(create_device_pool(7, 4096, &pool, &error) == Status::kNotFound, "no such device");
  check(create_device_pool(0, 0, &pool, &error) == Status::kInvalid, "no bytes");
  int word = 0;
  check(register_device_pool(0, reinterpret_cast<uintptr_t>(&word), 4, &pool, &error) == Status::kInvalid, "host memory");
  check(error.find("is not of a device") != std::string::npos, error);
  double_fail_next("cuMemCreate", 2);
  check(create_device_pool(0, 4096, &pool, &error) == Status::kSystem, "no memory");
  check(error.find("CUDA_ERROR_OUT_OF_MEMORY") != std::string::npos, error);
}

}  // namespace millrace::kv::test
