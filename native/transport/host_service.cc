// The serving side of the transports of one host: what peers may map, and the grants that they hold. See host_service.h.
#include "host_service.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "service.h"

namespace millrace::kv {
namespace {

// Messages of one peer that are served before others have their turn.
constexpr int kMessagesPerTurn = 64;
// How long grants are kept for a process whose end cannot be seen (of another pid namespace).
constexpr uint64_t kUnseenEndNs = uint64_t{kPeerLossMs} * 1'000'000;

}  // namespace

struct HostService::Connection {
  Connection(int descriptor, int epoll) : socket(descriptor, epoll) {}
  ~Connection() {
    if (pidfd >= 0) close(pidfd);
  }
  HostSocket socket;
  bool is_greeted = false;
  HostUuid uuid{};
  // Where devices are in use, of the process at the other end; it is one of its own where that is this one.
  int pidfd = -1;
  bool is_own_process = false;
  std::map<uint64_t, Grant> grants;
  uint64_t granted_blocks = 0;
  std::vector<std::vector<uint8_t>> held;
};

HostService::HostService(TransportHost* host, int epoll, Announce announce, bool has_devices)
    : host_(host), epoll_(epoll), announce_(std::move(announce)), has_devices_(has_devices) {}

HostService::~HostService() {
  while (!connections_.empty()) drop(connections_.begin()->first);
  for (Leftover& leftover : leftovers_) {
    for (Grant& grant : leftover.grants) withdraw(grant);
    if (leftover.pidfd >= 0) close(leftover.pidfd);
  }
  if (listener_ >= 0) close(listener_);
}

Status HostService::listen(const std::string& name, const HostUuid& uuid, const HostUuid& token, std::string* error) {
  uuid_ = uuid;
  token_ = token;
  listener_ = HostSocket::listen_at(name);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = listener_;
  if (listener_ >= 0 && epoll_ctl(epoll_, EPOLL_CTL_ADD, listener_, &event) == 0) return Status::kOk;
  *error = std::string("listening on a Unix socket: ") + std::strerror(errno);
  return Status::kSystem;
}

void HostService::add_pool(Pool* pool) {
  pools_[pool->id] = pool;
  for (auto& [descriptor, connection] : connections_) {
    if (connection->is_greeted) tell_pool(*connection, *pool);
  }
}

Status HostService::remove_pool(Pool* pool) {
  if (!has_pool(pool)) return Status::kNotFound;
  if (granted_[pool->id] > 0) return Status::kBusy;
  granted_.erase(pool->id);
  pools_.erase(pool->id);
  for (auto& [descriptor, connection] : connections_) {
    if (connection->is_greeted) connection->socket.send(HostMessage::kPoolGone, pool->id, {});
  }
  return Status::kOk;
}

void HostService::bind_peer(const HostUuid& uuid, uint32_t peer) {
  peers_[uuid] = peer;
  removed_.erase(uuid);
  for (auto& [descriptor, connection] : connections_) {
    if (connection->uuid != uuid) continue;
    for (const std::vector<uint8_t>& bytes : std::exchange(connection->held, {})) host_->notified(peer, bytes);
  }
}

void HostService::unbind_peer(const HostUuid& uuid) {
  peers_.erase(uuid);
  // Only of those who are still there to send something.
  for (const auto& [descriptor, connection] : connections_) {
    if (connection->uuid == uuid) removed_.insert(uuid);
  }
}

bool HostService::ready(int descriptor) {
  if (descriptor == listener_) {
    accept_all();
    return true;
  }
  if (process_ended(descriptor)) return true;
  const auto found = connections_.find(descriptor);
  if (found == connections_.end()) return false;
  Connection& connection = *found->second;
  HostSocket::Incoming incoming;
  for (int turn = 0; turn < kMessagesPerTurn; turn++) {
    const HostSocket::Received received = connection.socket.receive(&incoming);
    if (received == HostSocket::Received::kNothing) break;
    if (received == HostSocket::Received::kClosed || !serve(connection, incoming)) {
      drop(descriptor);
      return true;
    }
  }
  // One that does not read its answers is not asked for more.
  if (!connection.socket.flush() || connection.socket.queued_bytes() > kHostQueueBytesMax) drop(descriptor);
  return true;
}

void HostService::accept_all() {
  while (true) {
    const int descriptor = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (descriptor < 0) return;
    auto connection = std::make_unique<Connection>(descriptor, epoll_);
    HostProcess process;
    const bool is_ours = connection->socket.process(&process) && process.uid == geteuid();
    connection->is_own_process = is_ours && process.pid == getpid();
    if (has_devices_ && is_ours && process.pid > 0 && !connection->is_own_process)
      connection->pidfd = static_cast<int>(syscall(SYS_pidfd_open, process.pid, 0));
    if (is_ours && connections_.size() < kHostPeersMax) connections_.emplace(descriptor, std::move(connection));
  }
}

// False when the peer breaks the rules and is to be cut off.
bool HostService::serve(Connection& connection, const HostSocket::Incoming& incoming) {
  const auto message = static_cast<HostMessage>(incoming.header.message);
  if (!connection.is_greeted) return message == HostMessage::kHello && greet(connection, incoming);
  switch (message) {
    case HostMessage::kGrant: return grant(connection, incoming);
    case HostMessage::kRelease: release(connection, incoming.header.id); return true;
    case HostMessage::kNotify:
      if (incoming.payload.size() > kNotificationBytesMax || connection.held.size() >= kHeldNotificationsMax) return false;
      notified(connection, incoming.payload);
      return true;
    default: return false;
  }
}

bool HostService::greet(Connection& connection, const HostSocket::Incoming& incoming) {
  HostHello hello;
  if (incoming.payload.size() != sizeof hello) return false;
  std::memcpy(&hello, incoming.payload.data(), sizeof hello);
  if (hello.version != kHostVersion || hello.token != token_) return false;
  connection.is_greeted = true;
  connection.uuid = hello.from;
  connection.socket.send(HostMessage::kWelcome, 0, uuid_);
  for (const auto& [id, pool] : pools_) tell_pool(connection, *pool);
  return true;
}

void HostService::tell_pool(Connection& connection, const Pool& pool) {
  const HostAnnouncement announced = announce_(pool);
  HostPool facts = announced.facts;
  facts.has_table = pool.table() != nullptr ? 1 : 0;
  std::vector<int> descriptors;
  if (facts.has_memory != 0) descriptors.push_back(announced.descriptor);
  if (pool.shared_table() != nullptr) {
    facts.table_bytes = pool.shared_table()->bytes();
    descriptors.push_back(pool.shared_table()->descriptor());
  }
  connection.socket.send(HostMessage::kPool, pool.id, bytes_of(facts), announced.extra, descriptors);
}

Status HostService::enter(Pool* pool, uint32_t block, uint32_t generation, bool is_write) {
  const Status status = pool->table()->enter(block, generation);
  if (status != Status::kOk) return status;
  if (is_served(is_write ? Direction::kWrite : Direction::kRead, pool->table()->state(block))) return Status::kOk;
  pool->table()->leave(block);
  return Status::kNotAllowed;
}

bool HostService::grant(Connection& connection, const HostSocket::Incoming& incoming) {
  HostGrant request;
  if (incoming.payload.size() < sizeof request) return false;
  std::memcpy(&request, incoming.payload.data(), sizeof request);
  const uint64_t pairs_bytes = uint64_t{request.pairs} * 2 * sizeof(uint32_t);
  if (request.pairs > kGrantPairsMax || incoming.payload.size() != sizeof request + pairs_bytes) return false;
  const auto [found, is_new] = connection.grants.try_emplace(incoming.header.id);
  Grant& grant = found->second;
  if (is_new) {
    grant.pool = request.pool;
    granted_[grant.pool]++;
  }
  if (grant.pool != request.pool || connection.grants.size() > kGrantsMax) return false;
  const auto at = pools_.find(request.pool);
  Pool* pool = at == pools_.end() ? nullptr : at->second;
  if (pool == nullptr) grant.status = Status::kNotFound;
  if (pool != nullptr && pool->table() == nullptr) grant.status = Status::kNotAllowed;
  if (connection.granted_blocks + request.pairs > kGrantBlocksMax) grant.status = Status::kFull;
  for (uint32_t i = 0; i < request.pairs && grant.status == Status::kOk; i++) {
    uint32_t pair[2];
    std::memcpy(pair, incoming.payload.data() + sizeof request + i * sizeof pair, sizeof pair);
    grant.status = enter(pool, pair[0], pair[1], request.is_write != 0);
    if (grant.status != Status::kOk) break;
    grant.blocks.push_back(pair[0]);
    connection.granted_blocks++;
  }
  if (request.is_last == 0) return true;
  const auto status = static_cast<int32_t>(grant.status);
  if (grant.status != Status::kOk) release(connection, incoming.header.id);
  connection.socket.send(HostMessage::kGranted, incoming.header.id, bytes_of(status));
  return true;
}

void HostService::withdraw(Grant& grant) {
  const auto found = pools_.find(grant.pool);
  for (const uint32_t block : grant.blocks) found->second->table()->leave(block);
  if (--granted_[grant.pool] == 0) granted_.erase(grant.pool);
}

void HostService::release(Connection& connection, uint64_t operation) {
  const auto found = connection.grants.find(operation);
  if (found == connection.grants.end()) return;
  connection.granted_blocks -= found->second.blocks.size();
  withdraw(found->second);
  connection.grants.erase(found);
}

void HostService::notified(Connection& connection, std::span<const uint8_t> bytes) {
  if (removed_.contains(connection.uuid)) return;
  const auto found = peers_.find(connection.uuid);
  if (found != peers_.end()) {
    host_->notified(found->second, bytes);
  } else {
    connection.held.emplace_back(bytes.begin(), bytes.end());
  }
}

void HostService::drop(int descriptor) {
  const auto found = connections_.find(descriptor);
  if (has_devices_ && !found->second->is_own_process) keep_until_gone(*found->second);
  for (auto& [operation, grant] : found->second->grants) withdraw(grant);
  removed_.erase(found->second->uuid);
  connections_.erase(found);
}

// Of a process that is gone altogether, or will be: until then its device may write. In our own process the transport that
// had the grants has given them back before it closed the socket.
void HostService::keep_until_gone(Connection& connection) {
  if (connection.grants.empty()) return;
  Leftover leftover{std::exchange(connection.pidfd, -1), host_->now_ns() + kUnseenEndNs, {}};
  for (auto& [operation, grant] : connection.grants) leftover.grants.push_back(std::move(grant));
  connection.grants.clear();
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = leftover.pidfd;
  if (leftover.pidfd >= 0) epoll_ctl(epoll_, EPOLL_CTL_ADD, leftover.pidfd, &event);
  leftovers_.push_back(std::move(leftover));
}

// True when the descriptor is that of a process whose grants were kept.
bool HostService::process_ended(int pidfd) {
  const auto found = std::find_if(leftovers_.begin(), leftovers_.end(),
                                  [pidfd](const Leftover& leftover) { return leftover.pidfd == pidfd; });
  if (pidfd < 0 || found == leftovers_.end()) return false;
  for (Grant& grant : found->grants) withdraw(grant);
  epoll_ctl(epoll_, EPOLL_CTL_DEL, pidfd, nullptr);
  close(pidfd);
  leftovers_.erase(found);
  return true;
}

void HostService::send_heartbeats() {
  const uint64_t now = leftovers_.empty() ? 0 : host_->now_ns();
  std::erase_if(leftovers_, [&](Leftover& leftover) {
    if (leftover.pidfd >= 0 || now < leftover.until_ns) return false;
    for (Grant& grant : leftover.grants) withdraw(grant);
    return true;
  });
  for (auto& [descriptor, connection] : connections_) {
    if (connection->is_greeted && connection->socket.queued_bytes() == 0) {
      connection->socket.send(HostMessage::kHeartbeat, 0, {});
    }
  }
}

}  // namespace millrace::kv
