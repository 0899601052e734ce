// See memory.h.
#include "memory.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

namespace millrace::bench {
namespace {

constexpr uint64_t kLargePage = uint64_t{2} << 20;
constexpr uint32_t kIovecs = 512;

}  // namespace

double now_seconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

void stop(const std::string& why) {
  std::fprintf(stderr, "yardsticks: %s\n", why.c_str());
  std::exit(1);
}

void require(bool holds, const char* what) {
  if (!holds) stop(std::string(what) + ": " + std::strerror(errno));
}

void use_processor(uint32_t number) {
  static const cpu_set_t all = [] {
    cpu_set_t found;
    CPU_ZERO(&found);
    require(sched_getaffinity(0, sizeof(found), &found) == 0, "sched_getaffinity");
    return found;
  }();
  for (uint32_t processor = 0; processor < CPU_SETSIZE; processor++) {
    if (!CPU_ISSET(processor, &all) || number-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    require(sched_setaffinity(0, sizeof(one), &one) == 0, "sched_setaffinity");
    return;
  }
}

std::vector<uint32_t> scattered(uint32_t blocks, uint32_t seed) {
  std::vector<uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0);
  uint32_t state = seed;
  for (uint32_t i = blocks - 1; i > 0; i--) {
    state = state * 1'103'515'245 + 12'345;
    std::swap(order[i], order[(state >> 8) % (i + 1)]);
  }
  return order;
}

void Lists::make_orders() {
  if (blocks < 1 || count < 1 || count > blocks) stop("a list must have from 1 to as many blocks as the pool");
  sources = scattered(blocks, 1);
  targets = scattered(blocks, 2);
}

uint8_t* large_pages(uint64_t bytes) {
  void* const memory = mmap(nullptr, bytes + kLargePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(memory != MAP_FAILED, "mmap");
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kLargePage - 1) / kLargePage * kLargePage;
  auto* const address = reinterpret_cast<uint8_t*>(begin);
  madvise(address, bytes, MADV_HUGEPAGE);
  std::memset(address, 1, bytes);
  return address;
}

uint8_t* map_file(const std::string& path, uint64_t bytes) {
  const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
  require(descriptor >= 0, path.c_str());
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  require(memory != MAP_FAILED, "mmap");
  close(descriptor);
  auto* const address = static_cast<volatile uint8_t*>(memory);
  // Every page into the page tables before anything is timed.
  for (uint64_t at = 0; at < bytes; at += 4096) address[at] = address[at];
  return static_cast<uint8_t*>(memory);
}

void copy_list(const Lists& lists, uint32_t batch, const uint8_t* source, uint8_t* target) {
  for (uint32_t i = 0; i < lists.count; i++) {
    std::memcpy(target + lists.target(batch, i), source + lists.source(batch, i), lists.block_bytes);
  }
}

uint64_t read_list(const Lists& lists, uint32_t batch, const uint8_t* target) {
  uint64_t sum = 0;
  for (uint32_t i = 0; i < lists.count; i++) {
    const uint8_t* const block = target + lists.target(batch, i);
    for (uint64_t at = 0; at < lists.block_bytes; at += sizeof(uint64_t)) {
      uint64_t word;
      std::memcpy(&word, block + at, sizeof(word));
      sum += word;
    }
  }
  return sum;
}

// The child makes its memory itself: pages that it shared with us would be copied, and broken into small ones, when first read.
Neighbour spawn_neighbour(uint64_t bytes) {
  int ends[2];
  require(pipe(ends) == 0, "pipe");
  Neighbour made;
  made.pid = fork();
  require(made.pid >= 0, "fork");
  if (made.pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const auto address = reinterpret_cast<uintptr_t>(large_pages(bytes));
    require(write(ends[1], &address, sizeof(address)) == sizeof(address), "pipe");
    for (;;) pause();
  }
  require(read(ends[0], &made.address, sizeof(made.address)) == sizeof(made.address), "the neighbour's address");
  close(ends[0]);
  close(ends[1]);
  return made;
}

void read_neighbour(const Lists& lists, uint32_t batch, const Neighbour& from, uint8_t* target) {
  for (uint32_t first = 0; first < lists.count; first += kIovecs) {
    iovec here[kIovecs], there[kIovecs];
    const uint32_t count = std::min(lists.count - first, kIovecs);
    for (uint32_t i = 0; i < count; i++) {
      here[i] = {target + lists.target(batch, first + i), lists.block_bytes};
      there[i] = {reinterpret_cast<void*>(from.address + lists.source(batch, first + i)), lists.block_bytes};
    }
    const ssize_t moved = process_vm_readv(from.pid, here, count, there, count, 0);
    require(moved == static_cast<ssize_t>(count * lists.block_bytes), "process_vm_readv");
  }
}

}  // namespace millrace::bench
