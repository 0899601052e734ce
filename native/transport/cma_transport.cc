// Copies by process_vm_readv and process_vm_writev, for memory that a peer did not make for sharing. See cma_transport.h.
#include "cma_transport.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "copy.h"
#include "crc32c.h"

namespace millrace::kv {
namespace {

// Pieces in one call; more gain nothing, and a call is not interrupted by other work of the thread.
constexpr size_t kPiecesMax = 512;
constexpr uint64_t kVerifyBytes = 64 * 1024;
// Measured: 1.1 us a call, and the rate of 512 pieces of 16 KiB on small pages. Large ones reach 11 to 18 GB/s.
constexpr uint64_t kReadLatencyNs = 4'000;
constexpr uint64_t kGrantLatencyNs = 30'000;
constexpr uint64_t kBytesPerSecond = 7'000'000'000;

Status status_of(int why) {
  if (why == ESRCH) return Status::kPeerLost;
  return why == EPERM ? Status::kNotAllowed : Status::kSystem;
}

void* pointer(uint64_t address) { return reinterpret_cast<void*>(static_cast<uintptr_t>(address)); }

// The Yama module's restriction, 0 where it is not there.
int ptrace_scope() {
  const int descriptor = open("/proc/sys/kernel/yama/ptrace_scope", O_RDONLY | O_CLOEXEC);
  char digit = '0';
  if (descriptor >= 0) {
    if (read(descriptor, &digit, 1) != 1) digit = '0';
    close(descriptor);
  }
  return digit - '0';
}

std::string scope_words(int scope) {
  switch (scope) {
    case 0: return "";
    case 1: return "; kernel.yama.ptrace_scope is 1: peers must be our children or name us with PR_SET_PTRACER";
    case 2: return "; kernel.yama.ptrace_scope is 2: needs CAP_SYS_PTRACE";
    default: return "; kernel.yama.ptrace_scope is 3: nobody may";
  }
}

// One side's pieces; neighbours become one.
struct Pieces {
  std::array<iovec, kPiecesMax> list;
  size_t count = 0;

  bool takes(uint64_t address) const { return count < kPiecesMax || ends_at(address); }
  bool ends_at(uint64_t address) const {
    if (count == 0) return false;
    const iovec& last = list[count - 1];
    return reinterpret_cast<uintptr_t>(last.iov_base) + last.iov_len == address;
  }
  void add(uint64_t address, uint64_t length) {
    if (ends_at(address)) list[count - 1].iov_len += length;
    else list[count++] = {pointer(address), length};
  }
};

}  // namespace

class CmaTransport::CmaMove final : public Move {
 public:
  CmaMove(int32_t pid, const RemotePool& pool, const Operation& operation, std::span<const Run> runs)
      : pid_(pid),
        is_read_(operation.direction == Direction::kRead),
        local_(reinterpret_cast<uintptr_t>(operation.local->address())),
        remote_(pool.facts.address),
        every_(check_every(operation.integrity)),
        cursor_(runs),
        verified_(runs) {}

  Status step(uint64_t bytes_most, bool* is_done) override {
    if (!cursor_.at_end()) {
      const Status status = move(bytes_most);
      *is_done = cursor_.at_end() && every_ == 0;
      return status;
    }
    return verify(bytes_most, is_done);
  }

 private:
  uint64_t local_of(const Stretch& stretch) const { return local_ + (is_read_ ? stretch.target : stretch.source); }
  uint64_t remote_of(const Stretch& stretch) const { return remote_ + (is_read_ ? stretch.source : stretch.target); }

  Status move(uint64_t bytes_most) {
    Pieces here;
    Pieces there;
    uint64_t bytes = 0;
    while (bytes < bytes_most && !cursor_.at_end()) {
      const Stretch stretch = cursor_.peek(bytes_most - bytes);
      if (!here.takes(local_of(stretch)) || !there.takes(remote_of(stretch))) break;
      here.add(local_of(stretch), stretch.length);
      there.add(remote_of(stretch), stretch.length);
      cursor_.advance(stretch.length);
      bytes += stretch.length;
    }
    const auto call = is_read_ ? process_vm_readv : process_vm_writev;
    const ssize_t moved = call(pid_, here.list.data(), here.count, there.list.data(), there.count, 0);
    if (moved == static_cast<ssize_t>(bytes)) return Status::kOk;
    // A short count is a page that is not there on the other side.
    return moved < 0 ? status_of(errno) : Status::kSystem;
  }

  // Reads the peer's bytes again, and compares them by checksum with those here.
  Status verify(uint64_t bytes_most, bool* is_done) {
    if (again_.empty()) again_.resize(kVerifyBytes);
    uint64_t seen = 0;
    while (seen < bytes_most && !verified_.at_end()) {
      if (verified_.run().block % every_ != 0) {
        verified_.skip_run();
        continue;
      }
      const Stretch stretch = verified_.peek(kVerifyBytes);
      const iovec to{again_.data(), stretch.length};
      const iovec from{pointer(remote_of(stretch)), stretch.length};
      const ssize_t moved = process_vm_readv(pid_, &to, 1, &from, 1, 0);
      if (moved < 0) return status_of(errno);
      const bool is_same = moved == static_cast<ssize_t>(stretch.length) &&
                           crc32c(0, again_.data(), stretch.length) == crc32c(0, pointer(local_of(stretch)), stretch.length);
      if (!is_same) return Status::kCorrupt;
      verified_.advance(stretch.length);
      seen += stretch.length;
    }
    *is_done = verified_.at_end();
    return Status::kOk;
  }

  int32_t pid_;
  bool is_read_;
  uint64_t local_;
  uint64_t remote_;
  uint32_t every_;
  RunCursor cursor_;
  RunCursor verified_;
  std::vector<uint8_t> again_;
};

TransportInfo CmaTransport::probe() {
  TransportInfo info{"cma", false, "", 1u << static_cast<uint32_t>(MemoryKind::kHost), true, true};
  const uint64_t word = 0x6d69'6c6c'7261'6365;
  uint64_t copy = 0;
  const iovec to{&copy, sizeof copy};
  const iovec from{const_cast<uint64_t*>(&word), sizeof word};
  const bool works = process_vm_readv(getpid(), &to, 1, &from, 1, 0) == sizeof word && copy == word;
  const int scope = ptrace_scope();
  info.available = works && scope < 3;
  if (works) {
    info.reason = "about 0.4 of memcpy on 4 KiB pages and 0.9 on huge ones: put registered memory on huge pages";
  } else {
    info.reason = std::string("process_vm_readv: ") + std::strerror(errno);
  }
  info.reason += scope_words(scope);
  return info;
}

Status CmaTransport::create(TransportHost* host, std::unique_ptr<Transport>* out, std::string* error) {
  const TransportInfo info = probe();
  if (!info.available) {
    *error = info.reason;
    return Status::kUnsupported;
  }
  std::unique_ptr<CmaTransport> made(new CmaTransport(host, info));
  const Status status = made->open(error);
  if (status == Status::kOk) *out = std::move(made);
  return status;
}

Cost CmaTransport::cost(uint32_t, const Operation& operation, uint64_t) {
  return {operation.direction == Direction::kRead ? kReadLatencyNs : kGrantLatencyNs, kBytesPerSecond};
}

HostAnnouncement CmaTransport::announce(const Pool& pool) const {
  return {{pool.id, 0, pool.bytes(), reinterpret_cast<uintptr_t>(pool.address()), 0, 0, 0}, {}, -1};
}

Status CmaTransport::greet(const HostProcess& process, const HostDescribed& described, std::string* reason) {
  if (process.pid <= 0) {
    *reason = "the peer is in a pid namespace that cannot be seen from here";
    return Status::kUnsupported;
  }
  HostUuid uuid{};
  const iovec to{uuid.data(), uuid.size()};
  const iovec from{pointer(described.uuid_address), uuid.size()};
  if (process_vm_readv(process.pid, &to, 1, &from, 1, 0) != static_cast<ssize_t>(uuid.size())) {
    *reason = std::string("reading the peer's memory: ") + std::strerror(errno) + scope_words(ptrace_scope());
    return Status::kUnsupported;
  }
  if (uuid == described.uuid) return Status::kOk;
  *reason = "the process that listens for the peer is not the one that its metadata describes";
  return Status::kNotAllowed;
}

Status CmaTransport::reach(const HostUuid&, RemotePool* pool, int descriptor, std::string* error) {
  if (descriptor >= 0) close(descriptor);
  if (descriptor < 0 && pool->facts.address != 0 && pool->facts.address <= UINT64_MAX - pool->facts.bytes) return Status::kOk;
  *error = "pool " + std::to_string(pool->facts.id) + " came without an address that can be";
  return Status::kInvalid;
}

Status CmaTransport::begin(const HostProcess& process, const RemotePool& pool, const Operation& operation,
                           std::span<const Run> runs, uint64_t, std::unique_ptr<Move>* out) {
  *out = std::make_unique<CmaMove>(process.pid, pool, operation, runs);
  return Status::kOk;
}

}  // namespace millrace::kv
