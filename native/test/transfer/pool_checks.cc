// Pools: zeroed, sealed, mapped by descriptor; tables that a peer may read and not write; what is refused, and why.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "check.h"
#include "pool.h"

namespace millrace::kv::test {
namespace {

void create_and_map() {
  std::string error;
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{4097}, uint64_t{3} << 20}) {
    std::unique_ptr<Pool> pool;
    check(Pool::create(bytes, "test", &pool, &error) == Status::kOk, error);
    check(pool->bytes() == bytes && pool->page_bytes() >= 4096 && pool->descriptor() >= 0, "a pool of so many bytes");
    for (uint64_t i = 0; i < bytes; i += 1000) check(pool->address()[i] == 0, "zeroed");
    check(ftruncate(pool->descriptor(), 0) != 0, "a pool cannot shrink");
    std::unique_ptr<Pool> mapped;
    check(Pool::map(fcntl(pool->descriptor(), F_DUPFD_CLOEXEC, 0), bytes, &mapped, &error) == Status::kOk, error);
    mapped->address()[bytes - 1] = 9;
    check(pool->address()[bytes - 1] == 9, "one memory, two mappings");
    std::unique_ptr<Pool> longer;
    const int twin = fcntl(pool->descriptor(), F_DUPFD_CLOEXEC, 0);
    check(Pool::map(twin, bytes + (uint64_t{8} << 20), &longer, &error) == Status::kMismatch, "another size is refused");
    check(fcntl(twin, F_GETFD) < 0, "a refused descriptor is closed");
  }
}

void refused() {
  std::string error;
  std::unique_ptr<Pool> pool;
  check(Pool::create(0, "none", &pool, &error) == Status::kInvalid && error.find("from 1 to") != std::string::npos, error);
  check(Pool::create(kPoolBytesMax + 1, "huge", &pool, &error) == Status::kInvalid, "too many bytes");
  check(Pool::create(1, std::string(kPoolNameBytesMax + 1, 'n'), &pool, &error) == Status::kInvalid, "a name too long");
  check(Pool::wrap(nullptr, 1, MemoryKind::kHost, 0, &pool, &error) == Status::kInvalid, "no address");
  uint8_t byte = 0;
  check(Pool::wrap(&byte, kPoolBytesMax, MemoryKind::kHost, 0, &pool, &error) == Status::kOk, error);
  const int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  check(ftruncate(unsealed, 4096) == 0, "an unsealed memfd");
  check(Pool::map(unsealed, 4096, &pool, &error) == Status::kNotAllowed, "what may shrink is refused");
  check(Pool::map(open("/dev/zero", O_RDWR | O_CLOEXEC), 4096, &pool, &error) == Status::kNotAllowed, "no memfd");
}

void tables() {
  std::string error;
  std::unique_ptr<Pool> pool;
  check(Pool::create(4096, "table", &pool, &error) == Status::kOk, error);
  check(pool->create_table(0, &error) == Status::kInvalid, "a table of no blocks");
  check(pool->create_table(10, &error) == Status::kOk, error);
  const TableMemory& shared = *pool->shared_table();
  std::unique_ptr<TableMemory> peer;
  check(TableMemory::attach(fcntl(shared.descriptor(), F_DUPFD_CLOEXEC, 0), shared.bytes(), &peer, &error) == Status::kOk, error);
  uint32_t block = 0;
  uint32_t generation = 0;
  check(pool->table()->reserve(1, 1, &block, &generation) == Status::kOk, "a reservation");
  check(peer->table()->generation(block) == generation, "a peer sees the generation");
  check(peer->table()->state(block) == BlockState::kReserved, "a peer sees the state");
  void* writable = mmap(nullptr, shared.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, shared.descriptor(), 0);
  check(writable == MAP_FAILED, "nobody else can write into a table");
  std::unique_ptr<TableMemory> wrong;
  check(TableMemory::attach(fcntl(pool->descriptor(), F_DUPFD_CLOEXEC, 0), 4096, &wrong, &error) == Status::kMismatch,
        "memory without a table is refused");
}

}  // namespace

void pool_checks() {
  create_and_map();
  refused();
  tables();
}

}  // namespace millrace::kv::test
