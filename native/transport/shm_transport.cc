// Copies straight into and out of the mapped pool of a peer. See shm_transport.h.
#include "shm_transport.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "copy.h"

namespace millrace::kv {
namespace {

// Measured with pools in 4 KiB pages and blocks of 16 KiB; a grant costs a round trip of two progress threads.
constexpr uint64_t kReadLatencyNs = 3'000;
constexpr uint64_t kGrantLatencyNs = 30'000;
constexpr uint64_t kBytesPerSecond = 13'000'000'000;

}  // namespace

class ShmTransport::ShmMove final : public Move {
 public:
  explicit ShmMove(const Copy& copy) : copy_(copy) {}

  Status step(uint64_t bytes_most, bool* is_done) override {
    *is_done = copy_.step(bytes_most);
    return *is_done ? copy_.verdict() : Status::kOk;
  }

 private:
  Copy copy_;
};

TransportInfo ShmTransport::probe() {
  TransportInfo info{"shm", false, "", 1u << static_cast<uint32_t>(MemoryKind::kHost), true, true};
  const int descriptor = memfd_create("millrace-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  info.available = descriptor >= 0;
  if (descriptor < 0) {
    info.reason = std::string("memfd_create: ") + std::strerror(errno);
    return info;
  }
  close(descriptor);
  info.reason = "pools made by the agent only; in huge pages where the system has reserved some, else in small ones";
  return info;
}

Status ShmTransport::create(TransportHost* host, std::unique_ptr<Transport>* out, std::string* error) {
  const TransportInfo info = probe();
  if (!info.available) {
    *error = info.reason;
    return Status::kUnsupported;
  }
  std::unique_ptr<ShmTransport> made(new ShmTransport(host, info));
  const Status status = made->open(error);
  if (status == Status::kOk) *out = std::move(made);
  return status;
}

Cost ShmTransport::cost(uint32_t, const Operation& operation, uint64_t) {
  return {operation.direction == Direction::kRead ? kReadLatencyNs : kGrantLatencyNs, kBytesPerSecond};
}

HostAnnouncement ShmTransport::announce(const Pool& pool) const {
  return {{pool.id, 1, pool.bytes(), 0, 0, 0, 0}, {}, pool.descriptor()};
}

Status ShmTransport::greet(const HostProcess&, const HostDescribed&, std::string*) { return Status::kOk; }

Status ShmTransport::reach(const HostUuid&, RemotePool* pool, int descriptor, std::string* error) {
  if (descriptor >= 0) return Pool::map(descriptor, pool->facts.bytes, &pool->memory, error);
  *error = "pool " + std::to_string(pool->facts.id) + " came without its memory";
  return Status::kInvalid;
}

Status ShmTransport::begin(const HostProcess&, const RemotePool& pool, const Operation& operation,
                           std::span<const Run> runs, uint64_t bytes, std::unique_ptr<Move>* out) {
  const bool is_read = operation.direction == Direction::kRead;
  uint8_t* remote = pool.memory->address();
  uint8_t* local = operation.local->address();
  *out = std::make_unique<ShmMove>(Copy(runs, is_read ? remote : local, is_read ? local : remote,
                                        choose_path(bytes, operation.reader), operation.integrity));
  return Status::kOk;
}

}  // namespace millrace::kv
