// DeviceCopy on the double: random layouts between host and device memory, by kernel and by engine, at odd addresses, with
// integrity, against the plan's runs carried out one by one. A byte that differs afterwards is found by the digests.
#include <cstring>

#include "cuda_copy.h"
#include "device_memory.h"
#include "random_layouts.h"

namespace millrace::kv::test {
namespace {

using cuda::CopyOrder;
using cuda::CudaDevice;
using cuda::DeviceCopy;

struct Area {
  std::unique_ptr<Pool> pool;
  uint8_t* address = nullptr;
  cuda::Side side;
};

class Areas {
 public:
  explicit Areas(CudaDevice* device) : device_(device) {
    std::string error;
    check(cuda::PrimaryContext::hold(*cuda::library(&error), 0, &holder_, &error) == Status::kOk, error);
  }

  // Memory whose first byte is at any address.
  Area make(std::mt19937& random, bool is_device, uint64_t bytes) {
    Area area;
    std::string error;
    const uint64_t shift = random() % 3 == 0 ? random() % 20 : 0;
    if (is_device) {
      check(create_device_pool(0, bytes + shift, &area.pool, &error) == Status::kOk, error);
    } else {
      check(Pool::create(bytes + shift, "host", &area.pool, &error) == Status::kOk, error);
      registrations_.emplace_back();
      check(cuda::HostRegistration::make(holder_, area.pool->address(), bytes + shift, &registrations_.back(), &error) == Status::kOk,
            error);
    }
    area.address = area.pool->address() + shift;
    const auto at = reinterpret_cast<uintptr_t>(area.address);
    area.side = {at, at, is_device ? device_->ordinal() : -1};
    for (uint64_t i = 0; i < bytes; i++) area.address[i] = static_cast<uint8_t>(random());
    return area;
  }
  void forget() { registrations_.clear(); }

 private:
  CudaDevice* device_;
  std::shared_ptr<cuda::PrimaryContext> holder_;
  std::vector<std::shared_ptr<cuda::HostRegistration>> registrations_;
};

Status run(DeviceCopy& copy) {
  for (;;) {
    bool is_done = false;
    const Status status = copy.step(&is_done);
    if (status != Status::kOk || is_done) {
      check(copy.is_quiet(), "what has ended is quiet");
      return status;
    }
    while (!copy.is_ready()) continue;
  }
}

// Also with fewer fragments or larger ones than a kernel would be given.
void one_case(std::mt19937& random, CudaDevice& device, Areas& areas) {
  const LayoutPair pair = random_pair(random);
  const uint32_t kinds = random() % 3;
  Area source = areas.make(random, kinds != 0, pair.source.pool_bytes());
  Area target = areas.make(random, kinds != 1, pair.target.pool_bytes());
  CopyOrder order;
  order.device = &device;
  order.source = source.side;
  order.target = target.side;
  order.transform = pair.transform;
  order.source_blocks = pair.source_blocks;
  order.target_blocks = pair.target_blocks;
  order.integrity = static_cast<Integrity>(random() % 3);
  std::vector<Run> runs;
  std::string error;
  const auto count = static_cast<uint32_t>(pair.source_blocks.size());
  check(pair.transform->lower(pair.source_blocks.data(), pair.target_blocks.data(), count, &runs, &error) == Status::kOk, error);
  order.runs = runs;
  std::vector<uint8_t> expected(target.address, target.address + pair.target.pool_bytes());
  for (const Run& one : runs)
    for (uint32_t i = 0; i < one.count; i++)
      std::memcpy(&expected[one.target + i * one.target_stride], source.address + one.source + i * one.source_stride, one.length);
  {
    DeviceCopy copy(order);
    check(run(copy) == Status::kOk, "a copy succeeds");
  }
  check(std::memcmp(expected.data(), target.address, expected.size()) == 0, "and brings what the plan says, no byte more");
  check(device.has_parcel() && double_faults() == 0, "nothing else is touched");
  areas.forget();
}

// More blocks and pieces than one parcel takes, by kernel and by engine.
void large_case(std::mt19937& random, CudaDevice& device, Areas& areas, uint64_t block_bytes, uint32_t blocks) {
  Layout layout;
  std::string error;
  check(Layout::opaque(block_bytes, block_bytes, blocks, block_bytes * blocks, &layout, &error) == Status::kOk, error);
  Area source = areas.make(random, true, layout.pool_bytes());
  Area target = areas.make(random, false, layout.pool_bytes());
  CopyOrder order;
  order.device = &device;
  order.source = source.side;
  order.target = target.side;
  check(Transform::make(layout, layout, {}, &order.transform, &error) == Status::kOk, error);
  const std::vector<uint32_t> from = random_list(random, blocks, blocks);
  std::vector<uint32_t> to(from.rbegin(), from.rend());
  order.source_blocks = from;
  order.target_blocks = to;
  order.integrity = Integrity::kFull;
  std::vector<Run> runs;
  check(order.transform->lower(from.data(), to.data(), blocks, &runs, &error) == Status::kOk, error);
  order.runs = runs;
  DeviceCopy copy(order);
  check(run(copy) == Status::kOk, "a copy succeeds");
  for (uint32_t i = 0; i < blocks; i++)
    check(std::memcmp(target.address + to[i] * block_bytes, source.address + from[i] * block_bytes, block_bytes) == 0, "block by block");
  areas.forget();
}

// A byte is changed between the copy and the look at it.
void finds_damage(std::mt19937& random, CudaDevice& device, Areas& areas) {
  Layout layout;
  std::string error;
  check(Layout::opaque(4096, 4096, 32, 32 * 4096, &layout, &error) == Status::kOk, error);
  Area source = areas.make(random, true, layout.pool_bytes());
  Area target = areas.make(random, true, layout.pool_bytes());
  CopyOrder order;
  order.device = &device;
  order.source = source.side;
  order.target = target.side;
  check(Transform::make(layout, layout, {}, &order.transform, &error) == Status::kOk, error);
  const std::vector<uint32_t> list = random_list(random, 32, 32);
  order.source_blocks = order.target_blocks = list;
  order.integrity = Integrity::kFull;
  std::vector<Run> runs;
  check(order.transform->lower(list.data(), list.data(), 32, &runs, &error) == Status::kOk, error);
  order.runs = runs;
  DeviceCopy copy(order);
  bool is_done = false;
  check(copy.step(&is_done) == Status::kOk && !is_done, "the copy is queued");
  while (!copy.is_ready()) continue;
  target.address[random() % layout.pool_bytes()] ^= 1;
  check(run(copy) == Status::kCorrupt, "a byte that differs is found");
}

}  // namespace

void copy_checks(std::mt19937& random, uint32_t cases) {
  std::string error;
  with_each_driver([&] {
    std::unique_ptr<CudaDevice> device;
    check(CudaDevice::open(*cuda::library(&error), 0, &device, &error) == Status::kOk, error);
    check(device->has_kernels(), "an image of the kernels is there for the device");
    Areas areas(device.get());
    for (uint32_t i = 0; i < cases; i++) one_case(random, *device, areas);
    large_case(random, *device, areas, 64, 40'000);
    large_case(random, *device, areas, 40'000, 300);
    for (int i = 0; i < 5; i++) finds_damage(random, *device, areas);
  });
}

}  // namespace millrace::kv::test
