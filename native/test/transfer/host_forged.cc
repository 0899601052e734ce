// What a host transport refuses: descriptions that are damaged or of elsewhere, memory that is not what its metadata names,
// callers without the token; and grants that end with the line that they came over.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "check.h"
#include "host_peer.h"
#include "host_socket.h"
#include "host_transport.h"
#include "shm_transport.h"

namespace millrace::kv::test {
namespace {

constexpr uint64_t kBytes = 64 * 1024;

std::string name_of(const HostUuid& uuid) {
  std::string name = "millrace-shm-";
  char digits[3];
  for (const uint8_t byte : uuid) {
    std::snprintf(digits, sizeof digits, "%02x", byte);
    name += digits;
  }
  return name;
}

struct Fixture {
  Fixture() : epoll(epoll_create1(EPOLL_CLOEXEC)) {
    std::string error;
    check(ShmTransport::create(&host, &transport, &error) == Status::kOk, error);
    check(Layout::opaque(kBytes / 8, kBytes / 8, 8, kBytes, &setup.layout, &error) == Status::kOk, error);
    setup.table = TableKind::kShared;
    pool = make_pool(setup, 5, &generations);
    check(transport->add_pool(pool.get()) == Status::kOk, "a pool");
    transport->describe(&described);
    std::memcpy(&facts, described.data(), sizeof facts);
  }
  ~Fixture() { close(epoll); }
  void progress() {
    std::vector<Completion> completions;
    for (int turn = 0; turn < 8; turn++) transport->progress(&completions);
  }
  Status add(const HostDescribed& changed, std::string* reason) {
    std::vector<uint8_t> bytes = described;
    std::memcpy(bytes.data(), &changed, sizeof changed);
    return transport->add_peer(1, bytes, reason);
  }
  int epoll;
  RecordingHost host;
  std::unique_ptr<Transport> transport;
  PeerSetup setup{ShmTransport::create, {}, false, TableKind::kShared};
  std::vector<uint32_t> generations;
  std::unique_ptr<Pool> pool;
  std::vector<uint8_t> described;
  HostDescribed facts;
};

void descriptions() {
  Fixture given;
  std::string reason;
  for (size_t size = 0; size < given.described.size(); size++) {
    check(given.transport->add_peer(1, {given.described.data(), size}, &reason) == Status::kInvalid, "a short description");
  }
  HostDescribed changed = given.facts;
  changed.version++;
  check(given.add(changed, &reason) == Status::kMismatch && reason.find("known here is") != std::string::npos, reason);
  changed = given.facts;
  changed.boot[3] ^= 1;
  check(given.add(changed, &reason) == Status::kUnsupported && reason.find("host") != std::string::npos, reason);
  changed = given.facts;
  changed.uid++;
  check(given.add(changed, &reason) == Status::kUnsupported, "another user");
  changed = given.facts;
  changed.uuid[0] ^= 1;
  check(given.add(changed, &reason) == Status::kUnsupported, "nobody listens there: the description is stale");
}

// A line of our own to the transport's service.
bool is_cut(Fixture& given, HostSocket& line) {
  given.progress();
  HostSocket::Incoming incoming;
  while (true) {
    const HostSocket::Received received = line.receive(&incoming);
    if (received == HostSocket::Received::kClosed) return true;
    if (received == HostSocket::Received::kNothing) return false;
  }
}

void callers() {
  Fixture given;
  const auto connect = [&] { return std::make_unique<HostSocket>(HostSocket::connect_to(name_of(given.facts.uuid)), given.epoll); };
  HostHello hello{kHostVersion, 0, {1}, given.facts.token};
  hello.token[7] ^= 1;
  auto line = connect();
  line->send(HostMessage::kHello, 0, bytes_of(hello));
  check(is_cut(given, *line), "a caller without the token is cut off");
  line = connect();
  line->send(HostMessage::kNotify, 0, {});
  check(is_cut(given, *line), "and one that does not say who it is");

  hello.token = given.facts.token;
  line = connect();
  line->send(HostMessage::kHello, 0, bytes_of(hello));
  check(!is_cut(given, *line), "with it one is heard");
  const HostGrant request{5, 1, 1, 1};
  const uint32_t pair[2] = {3, given.generations[3]};
  line->send(HostMessage::kGrant, 44, bytes_of(request), bytes_of(pair));
  check(!is_cut(given, *line), "a grant");
  check(given.transport->remove_pool(given.pool.get()) == Status::kBusy, "a pool with a grant is busy");
  check(given.pool->table()->release(3, given.generations[3]) == Status::kOk, "its owner lets go");
  given.pool->table()->settle();
  check(given.pool->table()->state(3) == BlockState::kQuarantine, "a granted block is not free");
  line.reset();
  given.progress();
  given.pool->table()->settle();
  check(given.pool->table()->state(3) == BlockState::kFree, "until the line that had the grant is gone");
  check(given.transport->remove_pool(given.pool.get()) == Status::kOk, "then the pool can go");

  line = connect();
  line->send(HostMessage::kHello, 0, bytes_of(hello));
  HostGrant many = request;
  many.pairs = kGrantPairsMax + 1;
  line->send(HostMessage::kGrant, 45, bytes_of(many), bytes_of(pair));
  check(is_cut(given, *line), "more pairs than there are is against the rules");
}

// A peer whose metadata names `said` and who sends `sent` as its memory.
void impostor(const Pool& said, int sent, bool is_refused, const std::string& words) {
  Fixture given;
  HostDescribed changed = given.facts;
  changed.uuid[5] ^= 0x55;
  changed.pools = 1;
  struct stat memory;
  check(fstat(said.descriptor(), &memory) == 0, "fstat");
  const HostPoolIdentity identity{5, 0, memory.st_dev, memory.st_ino};
  std::vector<uint8_t> bytes(sizeof changed + sizeof identity);
  std::memcpy(bytes.data(), &changed, sizeof changed);
  std::memcpy(bytes.data() + sizeof changed, &identity, sizeof identity);
  const int listener = HostSocket::listen_at(name_of(changed.uuid));
  check(listener >= 0, "a listener");
  std::string reason;
  check(given.transport->add_peer(1, bytes, &reason) == Status::kOk, reason);
  HostSocket line(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK), given.epoll);
  close(listener);
  const HostPool facts{5, 1, kBytes, 0, 0, 0, 0};
  line.send(HostMessage::kWelcome, 0, changed.uuid);
  line.send(HostMessage::kPool, 5, bytes_of(facts), {}, {&sent, 1});
  given.progress();
  check(given.host.lost.size() == (is_refused ? 1 : 0), words);
  check(!is_refused || given.host.lost[0].find("protocol") != std::string::npos, "the loss says why");
}

void memories() {
  std::string error;
  std::unique_ptr<Pool> said, other, small;
  check(Pool::create(kBytes, "said", &said, &error) == Status::kOk, error);
  check(Pool::create(kBytes, "other", &other, &error) == Status::kOk, error);
  check(Pool::create(kBytes / 4, "small", &small, &error) == Status::kOk, error);
  const int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  check(unsealed >= 0 && ftruncate(unsealed, kBytes) == 0, "an unsealed memfd");
  impostor(*said, said->descriptor(), false, "the memory that was named is taken");
  impostor(*said, other->descriptor(), true, "other memory is refused");
  impostor(*small, small->descriptor(), true, "memory of another size is refused");
  impostor(*said, unsealed, true, "memory that may shrink is refused");
  close(unsealed);
}

}  // namespace

void host_forged() {
  descriptions();
  callers();
  memories();
}

}  // namespace millrace::kv::test
