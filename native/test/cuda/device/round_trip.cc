// A program for a machine with a GPU: blocks go from host memory to the device, on it from one layout to another, and back,
// and every byte is compared with what the plans say. Device memory is never looked at by the processor, so it runs on a
// real driver as on the double. Built by CMake with -DMILLRACE_GPU_CHECK=ON. `round_trip SEED CASES`; exits with 77, and the
// reason, where there is no device.
#include <cstring>

#include "../../transfer/node.h"
#include "../random_layouts.h"
#include "cuda_pool.h"
#include "cuda_transport.h"

namespace millrace::kv::test {
namespace {

constexpr int kSkip = 77;

struct Trip {
  Trip() {
    AgentOptions options;
    options.name = "round trip";
    std::string error;
    check(Agent::create(options, &node.agent, &error) == Status::kOk, error);
  }

  Pool* add(std::unique_ptr<Pool> pool, const Layout& layout) {
    std::string error;
    Pool* const added = pool.get();
    uint32_t id = 0;
    pool->set_layout(layout);
    check(node.agent->add_pool(std::move(pool), &id, &error) == Status::kOk, error);
    check(node.agent->add_peer(node.agent->metadata(), &self, &error) == Status::kOk, error);
    return added;
  }
  Pool* on_host(const Layout& layout) {
    std::unique_ptr<Pool> pool;
    std::string error;
    check(Pool::create(layout.pool_bytes(), "round trip", &pool, &error) == Status::kOk, error);
    return add(std::move(pool), layout);
  }
  Pool* on_device(const Layout& layout) {
    std::unique_ptr<Pool> pool;
    std::string error;
    check(create_device_pool(0, layout.pool_bytes(), &pool, &error) == Status::kOk, error);
    return add(std::move(pool), layout);
  }

  void move(const Pool& source, const Pool& target, const std::vector<uint32_t>& from, const std::vector<uint32_t>& to,
            std::mt19937& random) {
    const bool is_read = random() % 2 == 0;
    TransferRequest request;
    request.peer = self;
    request.direction = is_read ? Direction::kRead : Direction::kWrite;
    request.local_pool = is_read ? target.id : source.id;
    request.remote_pool = is_read ? source.id : target.id;
    request.local_blocks = is_read ? to : from;
    request.remote_blocks = is_read ? from : to;
    request.integrity = static_cast<Integrity>(random() % 3);
    request.transport = "cuda";
    std::string error;
    const int64_t id = node.agent->submit(request, &error);
    check(id > 0, error);
    const Status status = node.completion(id).status;
    check(status == Status::kOk, std::string("a transfer ends with: ") + status_name(status));
  }

  void remove(const Pool* pool) { check(node.agent->remove_pool(pool->id) == Status::kOk, "the pool can go"); }

  Node node;
  uint32_t self = 0;
};

std::vector<uint32_t> all_blocks(const Layout& layout) {
  std::vector<uint32_t> list(layout.blocks());
  for (uint32_t i = 0; i < list.size(); i++) list[i] = i;
  return list;
}

void one_case(std::mt19937& random, Trip& trip) {
  const LayoutPair pair = random_pair(random);
  const Pool* const out = trip.on_host(pair.source);
  const Pool* const first = trip.on_device(pair.source);
  const Pool* const second = trip.on_device(pair.target);
  const Pool* const back = trip.on_host(pair.target);
  for (uint64_t i = 0; i < out->bytes(); i++) out->address()[i] = static_cast<uint8_t>(random());
  for (uint64_t i = 0; i < back->bytes(); i++) back->address()[i] = static_cast<uint8_t>(random());
  std::vector<uint8_t> expected(back->address(), back->address() + back->bytes());
  std::vector<Run> runs;
  std::string error;
  const auto count = static_cast<uint32_t>(pair.source_blocks.size());
  check(pair.transform->lower(pair.source_blocks.data(), pair.target_blocks.data(), count, &runs, &error) == Status::kOk, error);
  for (const Run& run : runs)
    for (uint32_t i = 0; i < run.count; i++)
      std::memcpy(&expected[run.target + i * run.target_stride], out->address() + run.source + i * run.source_stride, run.length);
  const std::vector<uint32_t> sources = all_blocks(pair.source);
  const std::vector<uint32_t> targets = all_blocks(pair.target);
  trip.move(*out, *first, sources, sources, random);
  trip.move(*back, *second, targets, targets, random);
  trip.move(*first, *second, pair.source_blocks, pair.target_blocks, random);
  trip.move(*second, *back, targets, targets, random);
  check(std::memcmp(expected.data(), back->address(), expected.size()) == 0, "the bytes are those of the plan");
  for (const Pool* pool : {out, first, second, back}) trip.remove(pool);
}

}  // namespace
}  // namespace millrace::kv::test

int main(int count, char** argv) {
  const millrace::kv::TransportInfo info = millrace::kv::CudaTransport::probe();
  if (!info.available) {
    std::fprintf(stderr, "skipped, there is no device: %s\n", info.reason.c_str());
    return millrace::kv::test::kSkip;
  }
  const auto number = [&](int at, uint32_t otherwise) {
    return count > at ? static_cast<uint32_t>(std::strtoul(argv[at], nullptr, 10)) : otherwise;
  };
  const uint32_t seed = number(1, 1);
  const uint32_t cases = number(2, 200);
  std::mt19937 random(seed);
  millrace::kv::test::Trip trip;
  for (uint32_t i = 0; i < cases; i++) millrace::kv::test::one_case(random, trip);
  trip.node.agent->close();
  std::printf("seed %u, %u round trips without a finding on %s\n", seed, cases, info.reason.c_str());
}
