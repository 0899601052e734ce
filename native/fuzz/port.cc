// Submissions of a thread that writes what it likes, for libFuzzer: clang++ -std=c++20 -g -O1
// -fsanitize=fuzzer,address,undefined -Inative/include -Inative/transfer native/fuzz/port.cc native/transfer/{port,pool,
// block_table,block_table_check,layout,status}.cc -pthread. The port's memory has exactly its size; what is taken lies inside
// it and inside its limits. port_checks in native/test/transfer does as much with an agent behind the port, while it is written.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "millrace/port_descriptor.h"
#include "millrace/transfer_descriptor.h"
#include "port.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace millrace;
  constexpr uint32_t kEntries = kPortEntriesMin;
  constexpr uint32_t kArenaWords = 64;
  constexpr size_t kFirst = kPortHeaderWords + kEntries;
  const kv::PortShape shape{kEntries, kArenaWords};
  std::vector<uint32_t> memory(shape.words());
  // Entries first, and the arena's words after them.
  const size_t entries_bytes = std::min(size, size_t{kEntries} * kPortEntryWords * 4);
  if (size > 0) std::memcpy(&memory[kFirst], bytes, entries_bytes);
  const size_t arena_bytes = std::min(size - entries_bytes, size_t{kArenaWords} * 4);
  if (arena_bytes > 0) std::memcpy(&memory[memory.size() - kArenaWords], bytes + entries_bytes, arena_bytes);
  for (uint32_t i = 0; i < kEntries; i++) memory[kFirst + i * kPortEntryWords + kPortEntryTurn] = i + 1;
  kv::Port port(memory.data(), shape);
  kv::Port::Taken taken;
  uint32_t count = 0;
  for (; port.take(1, &taken); count++) {
    const kv::TransferRequest& request = taken.request;
    if (taken.status != kv::Status::kOk) {
      if (taken.status != kv::Status::kCancelled && taken.error.empty()) std::abort();
      kv::Event event;
      event.status = taken.status;
      port.complete(taken.tag, event, taken.error);
      continue;
    }
    const size_t blocks = request.local_blocks.size();
    if (taken.tag >= kEntries || blocks < 1 || blocks > kArenaWords / 2 || request.remote_blocks.size() != blocks) std::abort();
    if (!request.remote_generations.empty() && request.remote_generations.size() != blocks) std::abort();
    if (request.notification.size() > kArenaWords * 4) std::abort();
    port.begin(taken.tag, count);
  }
  if (count != kEntries || port.in_flight() > kEntries) std::abort();
  return 0;
}
