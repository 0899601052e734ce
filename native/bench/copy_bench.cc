// Copies against memcpy of the same list, and cma against a bare loop of calls: `copy_bench [rounds]`. The methods of a row
// take turns in one process and the medians are compared, so that what else runs on the machine meets all of them. Prints
// one JSON object per row. Built with -O3 from native/transfer and native/transport.
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "cma_transport.h"
#include "copy.h"
#include "pool.h"
#include "shm_transport.h"

namespace {

using namespace millrace::kv;

constexpr uint64_t kPoolBytes = uint64_t{512} << 20;
constexpr uint64_t kSliceBytes = uint64_t{1} << 20;
uint32_t rounds = 15;

uint64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

// Blocks of both pools in random order, a new part of it for every round, so that no round finds its bytes in the cache.
struct Lists {
  Lists(uint64_t block_bytes, uint64_t total_bytes) : count(total_bytes / block_bytes), bytes(block_bytes) {
    const uint64_t blocks = kPoolBytes / block_bytes;
    source.resize(blocks);
    std::iota(source.begin(), source.end(), 0);
    target = source;
    std::mt19937 random(7);
    std::shuffle(source.begin(), source.end(), random);
    std::shuffle(target.begin(), target.end(), random);
  }
  std::vector<Run> next() {
    if (at + count > source.size()) at = 0;
    std::vector<Run> runs;
    for (uint64_t i = at; i < at + count; i++) {
      runs.push_back({source[i] * bytes, target[i] * bytes, bytes, bytes, bytes, 1, static_cast<uint32_t>(i - at)});
    }
    at += count;
    return runs;
  }
  std::vector<uint64_t> source, target;
  uint64_t count, bytes, at = 0;
};

using Method = std::function<void(const std::vector<Run>&)>;

// Seconds by method, each a median over the rounds.
std::vector<double> take_turns(const std::function<std::vector<Run>()>& lists, const std::vector<Method>& methods) {
  std::vector<std::vector<double>> times(methods.size());
  for (uint32_t round = 0; round < rounds + 2; round++) {
    for (size_t i = 0; i < methods.size(); i++) {
      const size_t method = (i + round) % methods.size();
      const std::vector<Run> runs = lists();
      const uint64_t begin = now_ns();
      methods[method](runs);
      if (round >= 2) times[method].push_back(static_cast<double>(now_ns() - begin) * 1e-9);
    }
  }
  std::vector<double> medians;
  for (std::vector<double>& of : times) {
    std::nth_element(of.begin(), of.begin() + static_cast<long>(of.size() / 2), of.end());
    medians.push_back(of[of.size() / 2]);
  }
  return medians;
}

void report(const std::string& row, uint64_t bytes, const std::vector<const char*>& names, const std::vector<double>& times) {
  std::printf("{\"row\":\"%s\",\"bytes\":%llu", row.c_str(), static_cast<unsigned long long>(bytes));
  for (size_t i = 0; i < names.size(); i++) {
    std::printf(",\"%s\":{\"gbps\":%.2f,\"ratio\":%.3f}", names[i], static_cast<double>(bytes) / times[i] * 1e-9, times[0] / times[i]);
  }
  std::printf("}\n");
  std::fflush(stdout);
}

Method plain_loop(const uint8_t* source, uint8_t* target) {
  return [=](const std::vector<Run>& runs) {
    for (const Run& run : runs) {
      for (uint32_t i = 0; i < run.count; i++) {
        std::memcpy(target + run.target + i * run.target_stride, source + run.source + i * run.source_stride, run.length);
      }
    }
  };
}

Method copy_by(const uint8_t* source, uint8_t* target, CopyPath path) {
  return [=](const std::vector<Run>& runs) {
    Copy copy(runs, source, target, path, Integrity::kOff);
    while (!copy.step(kSliceBytes)) continue;
  };
}

volatile uint64_t sink;

Method then_read(const Method& method, const uint8_t* target) {
  return [=](const std::vector<Run>& runs) {
    method(runs);
    uint64_t sum = 0;
    for (const Run& run : runs) {
      for (uint64_t at = 0; at < run.length; at += 8) {
        uint64_t word;
        std::memcpy(&word, target + run.target + at, 8);
        sum += word;
      }
    }
    sink = sum;
  };
}

void copy_rows(const uint8_t* source, uint8_t* target, const char* memory) {
  for (const uint64_t total : {uint64_t{1} << 20, uint64_t{4} << 20, uint64_t{16} << 20, uint64_t{64} << 20, uint64_t{256} << 20}) {
    Lists lists(16'384, total);
    const Method loop = plain_loop(source, target);
    const Method stream = copy_by(source, target, CopyPath::kStream);
    const Method soon = copy_by(source, target, choose_path(total, Reader::kSoon));
    report(std::string("16 KiB random, ") + memory, total,
           {"memcpy", "plain", "stream", "memcpy+read", "stream+read", "soon+read"},
           take_turns([&] { return lists.next(); }, {loop, copy_by(source, target, CopyPath::kPlain), stream,
                      then_read(loop, target), then_read(stream, target), then_read(soon, target)}));
  }
}

// Token-major blocks to head-major ones: pieces of one head's vector.
void strided_rows(const uint8_t* source, uint8_t* target) {
  for (const uint64_t length : {128u, 256u, 512u}) {
    uint64_t round = 0;
    const auto lists = [&] {
      std::vector<Run> runs;
      for (uint32_t block = 0; block < 1024; block++) {
        const uint64_t at = (round * 1024 + block * 37 % 1024) * length * 16 * 8 % (kPoolBytes - length * 16 * 8);
        for (uint64_t head = 0; head < 8; head++) {
          runs.push_back({at + head * length, at + head * length * 16, length, length * 8, length, 16, block});
        }
      }
      round++;
      return runs;
    };
    report("NHD to HND, pieces of " + std::to_string(length), 1024 * 16 * 8 * length, {"memcpy", "plain", "stream"},
           take_turns(lists, {plain_loop(source, target), copy_by(source, target, CopyPath::kPlain),
                              copy_by(source, target, CopyPath::kStream)}));
  }
  Lists small(4096, uint64_t{40'960} * 4096);
  std::vector<double> one, many;
  for (uint32_t i = 0; i < rounds; i++) {
    const std::vector<Run> scattered = small.next();
    const std::vector<Run> whole = {{0, 0, uint64_t{40'960} * 4096, 0, 0, 1, 0}};
    const Method copy = copy_by(source, target, choose_path(uint64_t{40'960} * 4096, Reader::kUnknown));
    uint64_t begin = now_ns();
    copy(whole);
    one.push_back(static_cast<double>(now_ns() - begin) * 1e-9);
    begin = now_ns();
    copy(scattered);
    many.push_back(static_cast<double>(now_ns() - begin) * 1e-9);
  }
  std::sort(one.begin(), one.end());
  std::sort(many.begin(), many.end());
  report("40,960 x 4 KiB", uint64_t{40'960} * 4096, {"contiguous", "scattered"}, {one[one.size() / 2], many[many.size() / 2]});
}

struct BenchHost final : TransportHost {
  Pool* pool(uint32_t) override { return nullptr; }
  void notified(uint32_t, std::span<const uint8_t>) override {}
  void peer_lost(uint32_t, const std::string& why) override { require(false, why); }
  uint64_t now_ns() override { return ::now_ns(); }
};

using Make = Status (*)(TransportHost*, std::unique_ptr<Transport>*, std::string*);

void* huge_memory() {
  void* memory = mmap(nullptr, kPoolBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(memory != MAP_FAILED && madvise(memory, kPoolBytes, MADV_HUGEPAGE) == 0, "huge pages");
  std::memset(memory, 1, kPoolBytes);
  return memory;
}

// The peer: a process that owns `pool` and progresses when it has to.
pid_t serve(Make make, Pool* pool, std::vector<uint8_t>* described) {
  int pipes[2];
  require(pipe(pipes) == 0, "pipe");
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    BenchHost host;
    std::unique_ptr<Transport> transport;
    std::string error;
    require(make(&host, &transport, &error) == Status::kOk, error);
    transport->add_pool(pool);
    transport->describe(described);
    require(write(pipes[1], described->data(), described->size()) > 0, "pipe");
    std::vector<Completion> completions;
    while (true) {
      while (transport->progress(&completions)) continue;
      usleep(1000);
    }
  }
  described->resize(4096);
  const ssize_t size = read(pipes[0], described->data(), described->size());
  require(size > 0, "the peer says nothing");
  described->resize(static_cast<size_t>(size));
  close(pipes[0]);
  close(pipes[1]);
  return child;
}

// The other method beside a transport's operation; with the peer's process and its pool's address there and mapped here.
using Yardstick = std::function<Method(pid_t child, Pool* remote, Pool* local)>;

void transport_rows(Make make, const char* name, Pool* remote, const std::vector<std::pair<uint64_t, uint64_t>>& shapes,
                    Reader reader, const Yardstick& yardstick) {
  std::vector<uint8_t> described;
  const pid_t child = serve(make, remote, &described);
  BenchHost host;
  std::unique_ptr<Transport> transport;
  std::string error;
  require(make(&host, &transport, &error) == Status::kOk, error);
  require(transport->add_peer(1, described, &error) == Status::kOk, error);
  // Until the peer's pool has come and is mapped.
  std::vector<Completion> none;
  for (uint64_t end = now_ns() + 1'000'000'000; now_ns() < end;) transport->progress(&none);
  // In pages like the peer's: the kernel's copy is as slow as the smaller ones.
  std::unique_ptr<Pool> local;
  void* own = nullptr;
  if (remote->descriptor() >= 0) {
    require(Pool::create(kPoolBytes, "bench-local", &local, &error) == Status::kOk, error);
  } else {
    own = huge_memory();
    require(Pool::wrap(own, kPoolBytes, MemoryKind::kHost, 0, &local, &error) == Status::kOk, error);
  }
  for (const auto& [block_bytes, total] : shapes) {
    Layout layout;
    const auto blocks = static_cast<uint32_t>(kPoolBytes / block_bytes);
    require(Layout::opaque(block_bytes, block_bytes, blocks, kPoolBytes, &layout, &error) == Status::kOk, error);
    std::shared_ptr<const Transform> transform;
    require(Transform::make(layout, layout, {}, &transform, &error) == Status::kOk, error);
    uint64_t id = 0;
    const Method transfer = [&](const std::vector<Run>& runs) {
      std::vector<uint32_t> from, to;
      for (const Run& run : runs) {
        from.push_back(static_cast<uint32_t>(run.source / block_bytes));
        to.push_back(static_cast<uint32_t>(run.target / block_bytes));
      }
      Operation operation;
      operation.id = ++id;
      operation.reader = reader;
      operation.local = local.get();
      operation.remote_pool = remote->id;
      operation.transform = transform;
      operation.remote_blocks = from;
      operation.local_blocks = to;
      require(transport->submit(1, operation) == Status::kOk, "submit");
      std::vector<Completion> done;
      while (done.empty()) transport->progress(&done);
      require(done[0].status == Status::kOk, status_name(done[0].status));
    };
    Lists lists(block_bytes, total);
    report(std::string(name) + " " + std::to_string(block_bytes / 1024) + " KiB", total, {"yardstick", name},
           take_turns([&] { return lists.next(); }, {yardstick(child, remote, local.get()), transfer}));
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  if (own != nullptr) munmap(own, kPoolBytes);
}

Method memcpy_yardstick(pid_t, Pool* remote, Pool* local) { return plain_loop(remote->address(), local->address()); }

Method raw_cma_yardstick(pid_t child, Pool* remote, Pool* local) {
  return [=](const std::vector<Run>& runs) {
    for (size_t first = 0; first < runs.size(); first += 512) {
      iovec here[512], there[512];
      const size_t count = std::min<size_t>(runs.size() - first, 512);
      for (size_t i = 0; i < count; i++) {
        here[i] = {local->address() + runs[first + i].target, runs[first + i].length};
        there[i] = {remote->address() + runs[first + i].source, runs[first + i].length};
      }
      require(process_vm_readv(child, here, count, there, count, 0) > 0, "process_vm_readv");
    }
  };
}

}  // namespace

int main(int count, char** words) {
  if (count > 1) rounds = static_cast<uint32_t>(std::max(1, std::atoi(words[1])));
  std::string error;
  std::unique_ptr<Pool> source, target;
  require(Pool::create(kPoolBytes, "bench-source", &source, &error) == Status::kOk, error);
  require(Pool::create(kPoolBytes, "bench-target", &target, &error) == Status::kOk, error);
  std::memset(source->address(), 1, kPoolBytes);
  source->id = 1;
  const std::string memory = "memfd in pages of " + std::to_string(source->page_bytes() / 1024) + " KiB";
  copy_rows(source->address(), target->address(), memory.c_str());
  strided_rows(source->address(), target->address());
  target.reset();
  const uint64_t mib = uint64_t{1} << 20;
  transport_rows(ShmTransport::create, "shm", source.get(), {{16'384, mib}, {16'384, 4 * mib}, {16'384, 256 * mib}}, Reader::kLater, memcpy_yardstick);
  transport_rows(CmaTransport::create, "cma against raw calls,", source.get(), {{16'384, 64 * mib}}, Reader::kUnknown, raw_cma_yardstick);
  source.reset();
  // Registered memory in huge pages. The child has a copy of it under the same addresses.
  void* huge = huge_memory();
  require(Pool::wrap(huge, kPoolBytes, MemoryKind::kHost, 0, &source, &error) == Status::kOk, error);
  source->id = 1;
  transport_rows(CmaTransport::create, "cma huge pages against memcpy,", source.get(), {{mib, 64 * mib}}, Reader::kUnknown, memcpy_yardstick);
  transport_rows(CmaTransport::create, "cma huge pages against raw calls,", source.get(), {{16'384, 64 * mib}}, Reader::kUnknown, raw_cma_yardstick);
  munmap(huge, kPoolBytes);
}
