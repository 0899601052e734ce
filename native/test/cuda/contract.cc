// The contract of transports on agents of one process, with pools of each kind of memory, and the agent's choice of a
// transport by kind; an agent that has itself as a peer moves blocks between its own host and device pools.
#include "device_memory.h"
#include "transport_contract.h"
#include "transports.h"

namespace millrace::kv::test {
namespace {

std::unique_ptr<Pool> with_table(std::unique_ptr<Pool> pool, uint32_t blocks, uint32_t block_bytes) {
  Layout layout;
  std::string error;
  check(Layout::opaque(block_bytes, block_bytes, blocks, pool->bytes(), &layout, &error) == Status::kOk, error);
  pool->set_layout(layout);
  check(pool->create_table(blocks, &error) == Status::kOk, error);
  return pool;
}

std::unique_ptr<Pool> device_pool(uint32_t blocks, uint32_t block_bytes) {
  return with_table(own_device_memory(uint64_t{blocks} * block_bytes), blocks, block_bytes);
}

std::unique_ptr<Pool> other_device_pool(uint32_t blocks, uint32_t block_bytes) {
  return with_table(other_device_memory(uint64_t{blocks} * block_bytes), blocks, block_bytes);
}

// One agent, a pool in each memory, its own peer.
void offloads() {
  AgentOptions options;
  options.name = "own peer";
  std::unique_ptr<Agent> agent;
  std::string error;
  check(Agent::create(options, &agent, &error) == Status::kOk, error);
  std::unique_ptr<Pool> made[2] = {make_pool(32, 4096, false), device_pool(32, 4096)};
  Pool* const pools[2] = {made[0].get(), made[1].get()};
  uint32_t ids[2];
  for (int i = 0; i < 2; i++) check(agent->add_pool(std::move(made[i]), &ids[i], &error) == Status::kOk, error);
  uint32_t own = 0;
  check(agent->add_peer(agent->metadata(), &own, &error) == Status::kOk, error);
  Node node;
  node.agent = std::move(agent);
  uint32_t block = 0;
  uint32_t generation = 0;
  check(pools[1]->table()->reserve(1, 0, &block, &generation) == Status::kOk, "a block of the device");
  fill(*pools[0], 7, 1234);
  TransferRequest request;
  request.peer = own;
  request.direction = Direction::kWrite;
  request.local_pool = ids[0];
  request.remote_pool = ids[1];
  request.local_blocks = {7};
  request.remote_blocks = {block};
  request.remote_generations = {generation};
  const int64_t id = node.agent->submit(request, &error);
  check(id > 0, error);
  const Event done = node.completion(id);
  check(done.status == Status::kOk && std::string(done.transport) == "cuda", "to the device, by cuda");
  check(holds(*pools[1], block, 1234), "the bytes are there");
  request.remote_pool = ids[0];
  request.remote_blocks = {8};
  request.remote_generations = {};
  const int64_t on_host = node.agent->submit(request, &error);
  check(on_host > 0, error);
  const Event other = node.completion(on_host);
  check(other.status == Status::kOk && std::string(other.transport) != "cuda", "between host pools, not by cuda");
  request.transport = "shm";
  request.remote_pool = ids[1];
  request.remote_blocks = {block};
  request.remote_generations = {generation};
  const int64_t wrong = node.agent->submit(request, &error);
  check(wrong > 0 && node.completion(wrong).status == Status::kUnsupported, "shm has no way to a device");
  node.agent->close();
}

}  // namespace

void cuda_contract() {
  const TransportInfo info = cuda_transport().probe();
  check(info.available && info.reason.find("driver double") != std::string::npos, info.reason);
  const uint32_t before = double_open_things();
  ContractTransport contract;
  contract.plain = [] { return cuda_transport(); };
  with_each_driver([&] {
    const std::pair<PoolMaker, PoolMaker> kinds[] = {{device_pool, device_pool},
                                                     {make_host_pool, device_pool},
                                                     {device_pool, make_host_pool},
                                                     {device_pool, other_device_pool}};
    for (const auto& [here, there] : kinds) {
      contract.pool_here = here;
      contract.pool_there = there;
      contract_suite(contract);
    }
    offloads();
    check(double_faults() == 0, "nothing was touched that was not ours");
  });
  // The registered pools of the other device stay.
  check(double_open_things() > before, "things are counted");
}

}  // namespace millrace::kv::test
