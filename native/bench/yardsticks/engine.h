// The transfer engine as a native caller has it, through its C library: what JavaScript cannot measure, as it can neither spin
// on a completion nor read blocks at the speed of memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "memory.h"
#include "millrace_kv.h"

namespace millrace::bench {

// An agent here and one in a child, with a pool each, joined by one transport. Made before the program has threads.
class Engine {
 public:
  Engine(const std::string& transport, uint64_t block_bytes, uint32_t blocks);
  ~Engine();
  Engine(const Engine&) = delete;

  // Seconds from posting one batch after the other until a reader on this thread, who spins for the completion, has read it.
  double read_by_engine(const Lists& lists);
  // The same with a memcpy by another thread, which spins for work; between memories like those of the pools.
  double read_by_memcpy(const Lists& lists);
  // Nanoseconds from a completion to this spinning thread, sorted.
  std::vector<double> completions(uint32_t transfers);

 private:
  mkv_event transfer(const std::vector<uint32_t>& remote, const std::vector<uint32_t>& local);

  std::string transport_;
  mkv_agent* agent_ = nullptr;
  uint32_t peer_ = 0, local_pool_ = 0, source_pool_ = 0, remote_pool_ = 0;
  uint8_t* target_ = nullptr;
  const uint8_t* source_ = nullptr;
  int child_ = 0;
};

}  // namespace millrace::bench
