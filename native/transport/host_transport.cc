// What shm, cma and cuda have in common: peers, their pools, operations in turns, and their ends. See host_transport.h.
#include "host_transport.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "copy.h"
#include "host_flight.h"

namespace millrace::kv {
namespace {

constexpr uint64_t kMillisecond = 1'000'000;
constexpr int kEventsPerTurn = 32;
// About 100 us in pages of 4 KiB.
constexpr uint64_t kMapSliceBytes = uint64_t{2} << 20;
constexpr int kMessagesPerTurn = 64;
// How often deadlines of waiting operations are looked at.
constexpr uint64_t kWaitingScanMs = 10;

// The host's identity since it was started: same bytes, same kernel.
bool read_boot(HostUuid* out) {
  const int descriptor = ::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  char text[64] = {};
  const ssize_t size = read(descriptor, text, sizeof text - 1);
  close(descriptor);
  size_t digits = 0;
  for (ssize_t i = 0; i < size && digits < 2 * out->size(); i++) {
    const char c = text[i];
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0) continue;
    uint8_t& byte = (*out)[digits / 2];
    byte = static_cast<uint8_t>(byte << 4 | digit);
    digits++;
  }
  return digits == 2 * out->size();
}

HostPoolIdentity identity_of(uint32_t pool, int descriptor) {
  struct stat facts;
  if (descriptor < 0 || fstat(descriptor, &facts) != 0) return {pool, 0, 0, 0};
  return {pool, 0, static_cast<uint64_t>(facts.st_dev), static_cast<uint64_t>(facts.st_ino)};
}

bool add_to(int epoll, int descriptor) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = descriptor;
  return epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event) == 0;
}

}  // namespace

HostTransport::HostTransport(TransportHost* host, const TransportInfo& info, size_t extra_bytes)
    : host_(host), info_(info), extra_bytes_(extra_bytes) {}

void HostTransport::drop_all() {
  for (const auto& [id, flight] : flights_) {
    if (flight->has_asked_grant && !flight->peer->is_lost) flight->peer->socket.send(HostMessage::kRelease, id, {});
  }
  flights_.clear();
  service_.reset();
  peers_.clear();
}

HostTransport::~HostTransport() {
  drop_all();
  if (timer_ >= 0) close(timer_);
  if (epoll_ >= 0) close(epoll_);
}

std::string HostTransport::name_of(const HostUuid& uuid) const {
  std::string name = std::string("millrace-") + info_.name + "-";
  for (const uint8_t byte : uuid) {
    name += "0123456789abcdef"[byte >> 4];
    name += "0123456789abcdef"[byte & 15];
  }
  return name;
}

Status HostTransport::open(std::string* error) {
  const bool has_bytes = getrandom(uuid_.data(), uuid_.size(), 0) == static_cast<ssize_t>(uuid_.size()) &&
                         getrandom(token_.data(), token_.size(), 0) == static_cast<ssize_t>(token_.size());
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (!has_bytes || epoll_ < 0 || timer_ < 0 || !add_to(epoll_, timer_) || !read_boot(&boot_)) {
    *error = std::string("opening a host transport: ") + std::strerror(errno);
    return Status::kSystem;
  }
  const bool has_devices = (info_.memory_kinds & 1u << static_cast<uint32_t>(MemoryKind::kDevice)) != 0;
  service_ = std::make_unique<HostService>(host_, epoll_, [this](const Pool& pool) { return announce(pool); }, has_devices);
  is_timer_short_ = true;
  arm_timer();
  return service_->listen(name_of(uuid_), uuid_, token_, error);
}

// Heartbeats need a long period, deadlines of what waits a short one.
void HostTransport::arm_timer() {
  const bool is_short = waiting_ > 0;
  if (is_short == is_timer_short_) return;
  is_timer_short_ = is_short;
  const long period = static_cast<long>((is_short ? kWaitingScanMs : kHeartbeatMs) * kMillisecond);
  const itimerspec times{{0, period}, {0, period}};
  timerfd_settime(timer_, 0, &times, nullptr);
}

Status HostTransport::add_pool(Pool* pool) {
  if ((info_.memory_kinds >> static_cast<uint32_t>(pool->kind()) & 1) == 0 || !can_share(*pool)) return Status::kUnsupported;
  if (service_->has_pool(pool)) return Status::kInvalid;
  service_->add_pool(pool);
  return Status::kOk;
}

Status HostTransport::remove_pool(Pool* pool) {
  for (const auto& [id, flight] : flights_) {
    if (flight->operation.local == pool) return Status::kBusy;
  }
  return service_->remove_pool(pool);
}

void HostTransport::describe(std::vector<uint8_t>* out) {
  HostDescribed described{};
  described.version = kHostVersion;
  described.uid = geteuid();
  described.pools = static_cast<uint32_t>(service_->pools().size());
  described.boot = boot_;
  described.uuid = uuid_;
  described.token = token_;
  described.uuid_address = reinterpret_cast<uintptr_t>(uuid_.data());
  const std::span<const uint8_t> head = bytes_of(described);
  out->insert(out->end(), head.begin(), head.end());
  for (const auto& [id, pool] : service_->pools()) {
    const HostPoolIdentity identity = identity_of(id, announce(*pool).descriptor);
    const std::span<const uint8_t> bytes = bytes_of(identity);
    out->insert(out->end(), bytes.begin(), bytes.end());
  }
}

Status HostTransport::add_peer(uint32_t peer, std::span<const uint8_t> bytes, std::string* reason) {
  HostDescribed described;
  if (bytes.size() >= sizeof described) std::memcpy(&described, bytes.data(), sizeof described);
  if (bytes.size() < sizeof described ||
      bytes.size() != sizeof described + uint64_t{described.pools} * sizeof(HostPoolIdentity)) {
    *reason = "the peer's description has " + std::to_string(bytes.size()) + " bytes, which fits no number of pools";
    return Status::kInvalid;
  }
  if (described.version != kHostVersion) {
    *reason = "version of the peer is " + std::to_string(described.version) + "; known here is " + std::to_string(kHostVersion);
    return Status::kMismatch;
  }
  if (described.boot != boot_ || described.uid != geteuid()) {
    *reason = described.boot != boot_ ? "the peer is on another host" : "the peer is of another user";
    return Status::kUnsupported;
  }
  std::map<uint32_t, HostPoolIdentity> identities;
  for (uint32_t i = 0; i < described.pools; i++) {
    HostPoolIdentity identity;
    std::memcpy(&identity, bytes.data() + sizeof described + i * sizeof identity, sizeof identity);
    identities[identity.pool] = identity;
  }
  const auto known = peers_.find(peer);
  if (known != peers_.end() && known->second->uuid == described.uuid && !known->second->is_lost) {
    known->second->identities = std::move(identities);
    return Status::kOk;
  }
  if (known != peers_.end() && known->second->is_lost) {
    remove_peer(peer);
  } else if (known != peers_.end()) {
    *reason = "peer " + std::to_string(peer) + " is another process; remove it first";
    return Status::kBusy;
  }
  const int descriptor = HostSocket::connect_to(name_of(described.uuid));
  if (descriptor < 0) {
    *reason = std::string("the peer's socket cannot be reached from here: ") + std::strerror(errno);
    return Status::kUnsupported;
  }
  auto added = std::make_shared<Peer>(descriptor, epoll_);
  added->id = peer;
  added->uuid = described.uuid;
  added->identities = std::move(identities);
  if (!added->socket.process(&added->process) || added->process.uid != geteuid()) {
    *reason = "the process that listens for the peer is of another user";
    return Status::kNotAllowed;
  }
  // In another pid namespace there is no number for it; then the socket alone tells of its death.
  if (added->process.pid > 0) {
    added->pidfd = static_cast<int>(syscall(SYS_pidfd_open, added->process.pid, 0));
    if (added->pidfd >= 0 && add_to(epoll_, added->pidfd)) by_descriptor_[added->pidfd] = added.get();
  }
  const Status status = greet(added->process, described, reason);
  if (status != Status::kOk) {
    unwatch(*added);
    return status;
  }
  by_descriptor_[descriptor] = added.get();
  added->heard_ns = now_ns();
  const HostHello hello{kHostVersion, 0, uuid_, described.token};
  added->socket.send(HostMessage::kHello, 0, bytes_of(hello));
  service_->bind_peer(described.uuid, peer);
  peers_.emplace(peer, std::move(added));
  return Status::kOk;
}

void HostTransport::remove_peer(uint32_t id) {
  const auto found = peers_.find(id);
  if (found == peers_.end()) return;
  Peer& peer = *found->second;
  complete_all_of(peer, Status::kCancelled);
  peer.socket.flush();
  service_->unbind_peer(peer.uuid);
  unwatch(peer);
  peers_.erase(found);
}

Status HostTransport::notify(uint32_t id, std::span<const uint8_t> bytes) {
  const auto found = peers_.find(id);
  if (found == peers_.end()) return Status::kNotFound;
  if (bytes.size() > kNotificationBytesMax) return Status::kInvalid;
  Peer& peer = *found->second;
  if (peer.is_lost) return Status::kPeerLost;
  if (peer.socket.queued_bytes() + bytes.size() > kHostQueueBytesMax) return Status::kFull;
  peer.socket.send(HostMessage::kNotify, 0, bytes);
  return Status::kOk;
}

bool HostTransport::progress(std::vector<Completion>* completions) {
  bool has_worked = poll_events();
  has_worked |= run_waiting();
  has_worked |= run_parked();
  if (!moving_.empty()) {
    has_worked = true;
    run_slice();
  } else if (has_unmapped_) {
    has_worked = true;
    has_unmapped_ = map_more();
  }
  arm_timer();
  has_worked |= !completions_.empty();
  completions->insert(completions->end(), completions_.begin(), completions_.end());
  completions_.clear();
  return has_worked;
}

// A slice of the work that the first transfers would have otherwise, while there is nothing better to do.
bool HostTransport::map_more() {
  for (auto& [id, peer] : peers_) {
    for (auto& [number, pool] : peer->pools) {
      if (pool->memory != nullptr && pool->memory->map_more(kMapSliceBytes)) return true;
    }
  }
  return false;
}

bool HostTransport::poll_events() {
  epoll_event events[kEventsPerTurn];
  const int count = epoll_wait(epoll_, events, kEventsPerTurn, 0);
  bool has_ticked = false;
  for (int i = 0; i < count; i++) {
    const int descriptor = events[i].data.fd;
    if (descriptor == timer_) {
      has_ticked = true;
    } else if (!service_->ready(descriptor)) {
      const auto found = by_descriptor_.find(descriptor);
      if (found == by_descriptor_.end()) continue;
      Peer& peer = *found->second;
      if (descriptor == peer.pidfd) lose(peer, "its process ended");
      else peer_ready(peer);
    }
  }
  // After what has come, so that a pause of our own is not taken for silence of theirs.
  if (has_ticked) tick();
  return count > (has_ticked ? 1 : 0);
}

void HostTransport::tick() {
  uint64_t expirations = 0;
  if (read(timer_, &expirations, sizeof expirations) < 0) return;
  const uint64_t now = now_ns();
  waiting_scan_ns_ = 0;
  if (now - heartbeat_ns_ < (kHeartbeatMs - kWaitingScanMs) * kMillisecond) return;
  heartbeat_ns_ = now;
  service_->send_heartbeats();
}

void HostTransport::peer_ready(Peer& peer) {
  HostSocket::Incoming incoming;
  for (int turn = 0; turn < kMessagesPerTurn && !peer.is_lost; turn++) {
    const HostSocket::Received received = peer.socket.receive(&incoming);
    if (received == HostSocket::Received::kNothing) break;
    if (received == HostSocket::Received::kClosed) return lose(peer, "its socket closed");
    peer.heard_ns = now_ns();
    if (!serve(peer, incoming)) return lose(peer, "it broke the protocol: " + peer.fault);
  }
  if (!peer.is_lost && !peer.socket.flush()) lose(peer, "its socket broke");
}

bool HostTransport::serve(Peer& peer, const HostSocket::Incoming& incoming) {
  const auto message = static_cast<HostMessage>(incoming.header.message);
  if (!peer.is_welcome) {
    peer.fault = "it is not who its metadata says";
    peer.is_welcome = message == HostMessage::kWelcome && incoming.payload.size() == peer.uuid.size() &&
                      std::memcmp(incoming.payload.data(), peer.uuid.data(), peer.uuid.size()) == 0;
    return peer.is_welcome;
  }
  switch (message) {
    case HostMessage::kPool: return add_remote_pool(peer, incoming);
    case HostMessage::kPoolGone: {
      const auto pool = static_cast<uint32_t>(incoming.header.id);
      complete_all_of(peer, Status::kNotFound, pool);
      peer.pools.erase(pool);
      return true;
    }
    case HostMessage::kGranted: granted(peer, incoming); return true;
    case HostMessage::kHeartbeat: return true;
    default: peer.fault = "message " + std::to_string(incoming.header.message) + " is unknown"; return false;
  }
}

bool HostTransport::add_remote_pool(Peer& peer, const HostSocket::Incoming& incoming) {
  auto placed = std::make_shared<RemotePool>();
  RemotePool& pool = *placed;
  peer.fault = "a pool's announcement does not fit";
  if (incoming.payload.size() != sizeof pool.facts + extra_bytes_) return false;
  std::memcpy(&pool.facts, incoming.payload.data(), sizeof pool.facts);
  pool.extra.assign(incoming.payload.begin() + sizeof pool.facts, incoming.payload.end());
  if (peer.pools.contains(pool.facts.id) || pool.facts.bytes < 1 || pool.facts.bytes > kPoolBytesMax) return false;
  const int memory = pool.facts.has_memory != 0 ? peer.socket.take_descriptor() : -1;
  const int table = pool.facts.table_bytes != 0 ? peer.socket.take_descriptor() : -1;
  if (table >= 0 && TableMemory::attach(table, pool.facts.table_bytes, &pool.table, &peer.fault) != Status::kOk) {
    if (memory >= 0) close(memory);
    return false;
  }
  const HostPoolIdentity found = identity_of(pool.facts.id, memory);
  if (reach(peer.uuid, &pool, memory, &peer.fault) != Status::kOk) return false;
  if ((pool.facts.table_bytes != 0) != (pool.table != nullptr)) return false;
  const auto said = peer.identities.find(pool.facts.id);
  if (said != peer.identities.end() && (said->second.inode != found.inode || said->second.device != found.device)) {
    peer.fault = "pool " + std::to_string(pool.facts.id) + " is not the memory that its metadata names";
    return false;
  }
  peer.pools.emplace(pool.facts.id, std::move(placed));
  has_unmapped_ = true;
  waiting_scan_ns_ = 0;
  return true;
}

// By hand, as a descriptor that a forked child has too stays in the set when it is closed here.
void HostTransport::unwatch(const Peer& peer) {
  for (const int descriptor : {peer.socket.descriptor(), peer.pidfd}) {
    if (descriptor < 0) continue;
    by_descriptor_.erase(descriptor);
    epoll_ctl(epoll_, EPOLL_CTL_DEL, descriptor, nullptr);
  }
}

void HostTransport::lose(Peer& peer, const std::string& why) {
  if (peer.is_lost) return;
  peer.is_lost = true;
  complete_all_of(peer, Status::kPeerLost);
  unwatch(peer);
  peer.pools.clear();
  host_->peer_lost(peer.id, why);
}

}  // namespace millrace::kv
