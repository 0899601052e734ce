// Memory, lists and raw copies of the yardsticks; see main.cc for what they are measured for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace millrace::bench {

double now_seconds();

// Ends the program, with the words on stderr.
[[noreturn]] void stop(const std::string& why);
void require(bool holds, const char* what);

// This thread, and those that it makes from now on, run on the first or the second processor that there is, so that a reader and
// a copier never share one; where there is one alone, nothing changes.
void use_processor(uint32_t number);

// Numbers of `blocks` blocks in an order that no prefetcher guesses; bench/lib/transfer-pair.js makes the same.
std::vector<uint32_t> scattered(uint32_t blocks, uint32_t seed);

// A part of both orders: `batches` lists of `count` blocks from `first` on, beginning anew at the end.
struct Lists {
  uint64_t block_bytes;
  uint32_t blocks, count, batches, first;
  std::vector<uint32_t> sources, targets;

  void make_orders();
  // Where entry `i` of batch `batch` comes from and goes to, in bytes.
  uint64_t source(uint32_t batch, uint32_t i) const { return sources[place(batch, i)] * block_bytes; }
  uint64_t target(uint32_t batch, uint32_t i) const { return targets[place(batch, i)] * block_bytes; }
  uint32_t place(uint32_t batch, uint32_t i) const { return (first + (batch % (blocks / count)) * count) % blocks / count * count + i; }
};

// Private memory in large pages where the kernel gives them, all of it there.
uint8_t* large_pages(uint64_t bytes);
// The memory of another process's memfd, by its path under /proc.
uint8_t* map_file(const std::string& path, uint64_t bytes);

void copy_list(const Lists& lists, uint32_t batch, const uint8_t* source, uint8_t* target);
// Every word of the targets of one batch; the sum is there so that no compiler leaves it out.
uint64_t read_list(const Lists& lists, uint32_t batch, const uint8_t* target);

// A child with memory of its own, which is there for process_vm_readv alone.
struct Neighbour {
  int pid = 0;
  uint64_t address = 0;
};
Neighbour spawn_neighbour(uint64_t bytes);
void read_neighbour(const Lists& lists, uint32_t batch, const Neighbour& from, uint8_t* target);

}  // namespace millrace::bench
