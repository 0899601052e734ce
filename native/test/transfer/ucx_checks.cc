// The ucx transport over the lanes of one host, each set of them in a process of its own, as UCX reads its settings once:
// the contract, faults, bytes that are moved without messages, and messages of nobody.
#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "node.h"
#include "transport_contract.h"
#include "transport_faults.h"
#include "ucx_transport.h"

namespace millrace::kv::test {
namespace {

void suite(std::mt19937& random, uint32_t rounds) {
  fault_suite(ucx_transport, random, rounds);
  contract_suite({ucx_transport, {}});
}

// Pools in memory that UCX allocated, which its lanes of shared memory reach without messages.
std::unique_ptr<Pool> ucx_pool(uint32_t blocks, uint32_t block_bytes) {
  // Outlives the pool and its agent, as the process ends with them.
  static std::vector<std::unique_ptr<UcxMemory>> kept;
  std::string error;
  std::unique_ptr<UcxMemory> memory;
  std::unique_ptr<Pool> pool;
  check(UcxMemory::allocate(uint64_t{blocks} * block_bytes, &memory, &error) == Status::kOk, error);
  check(Pool::wrap(memory->address(), uint64_t{blocks} * block_bytes, MemoryKind::kHost, 0, &pool, &error) == Status::kOk, error);
  std::memset(pool->address(), 0, pool->bytes());
  kept.push_back(std::move(memory));
  Layout layout;
  check(Layout::opaque(block_bytes, block_bytes, blocks, pool->bytes(), &layout, &error) == Status::kOk, error);
  pool->set_layout(layout);
  check(pool->create_table(blocks, &error) == Status::kOk, error);
  return pool;
}

// The key of such memory says where to map it; that of other memory says nothing over these lanes.
void keys_differ() {
  std::vector<uint8_t> keys[2];
  for (const bool is_ours : {false, true}) {
    std::string error;
    void* memory = nullptr;
    UcxContext* const context = UcxContext::get(&error);
    check(context != nullptr, error);
    const std::unique_ptr<Pool> pool = is_ours ? ucx_pool(1, 1 << 20) : make_pool(1, 1 << 20);
    check(context->register_pool(*pool, &memory, &keys[is_ours], &error) == Status::kOk, error);
    context->unregister_pool(*pool, memory);
  }
  check(keys[1].size() > keys[0].size(), "memory of UCX has a key that maps it");
}

// In a child with these lanes only; how it ended is checked.
template <class Run>
void with_lanes(const char* lanes, Run run) {
  std::fflush(nullptr);
  const pid_t child = fork();
  check(child >= 0, "a child");
  if (child == 0) {
    setenv("UCX_TLS", lanes, 1);
    run();
    std::exit(0);
  }
  int status = 0;
  check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
        std::string("ucx over ") + lanes + " ended with status " + std::to_string(status));
}

}  // namespace

// Nothing may have loaded UCX before.
void ucx_loads_quietly() {
  if (std::getenv("UCX_MEM_EVENTS") != nullptr) return;
  check(dlopen("libucp.so.0", RTLD_NOW | RTLD_NOLOAD) == nullptr, "UCX is not loaded yet");
  using Code = std::array<uint8_t, 16>;
  const auto code = [] {
    std::vector<Code> functions;
    for (const char* name : {"mmap", "munmap", "mremap", "madvise", "brk", "shmat", "shmdt"}) {
      const void* const function = dlsym(RTLD_DEFAULT, name);
      check(function != nullptr, std::string("libc has ") + name);
      std::memcpy(functions.emplace_back().data(), function, sizeof(Code));
    }
    return functions;
  };
  const std::vector<Code> before = code();
  UcxTransport::probe();
  check(code() == before, "memory functions of libc are as they were");
  check(std::getenv("UCX_MEM_EVENTS") == nullptr, "and so is the environment");
}

void ucx_checks(std::mt19937& random, uint32_t rounds) {
#if defined(__SANITIZE_THREAD__)
  std::printf("ucx is not tested: UCX is not built for the thread sanitizer, which sees only half of its locks\n");
  return;
#endif
  const TransportInfo info = UcxTransport::probe();
  if (!info.available) {
    std::printf("ucx is not tested: %s\n", info.reason.c_str());
    return;
  }
  for (const char* lanes : {"posix", "tcp"}) with_lanes(lanes, [&] { suite(random, rounds); });
  with_lanes("posix", [&] {
    pool_source = ucx_pool;
    suite(random, rounds);
    keys_differ();
  });
  with_lanes("posix", [&] { ucx_hostile(random, rounds * 10); });
}

}  // namespace millrace::kv::test
