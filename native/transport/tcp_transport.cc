// The transport's calls, its settings and its clock; the work is in its two halves. See tcp_transport.h.
#include "tcp_transport.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace millrace::kv {
namespace {

constexpr uint64_t kSliceNs = 200'000;
constexpr uint64_t kTickNs = 100'000'000;
// Not called for so long, this side was standing still: the timer wakes it oftener.
constexpr uint64_t kPauseNs = 300'000'000;
// Of loopback; what a network has the agent measures.
constexpr Cost kCost = {30'000, 2'500'000'000};

std::string numeric(const sockaddr* address) {
  char text[NI_MAXHOST];
  const socklen_t size = address->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  return getnameinfo(address, size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0 ? text : "";
}

// Addresses of this host that a peer elsewhere could use: not loopback, nor of one link only.
std::vector<std::string> host_addresses() {
  std::vector<std::string> found;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return found;
  for (const ifaddrs* entry = list; entry != nullptr && found.size() < kTcpHostsMax; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0 || (entry->ifa_flags & IFF_LOOPBACK) != 0) continue;
    const bool is_four = entry->ifa_addr->sa_family == AF_INET;
    const bool is_six = entry->ifa_addr->sa_family == AF_INET6 &&
                        !IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr);
    if (is_four || is_six) found.push_back(numeric(entry->ifa_addr));
  }
  freeifaddrs(list);
  return found;
}

// What peers are told when nobody says it.
Status hosts_of(const std::string& listen_host, std::vector<std::string>* out, std::string* error) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = getaddrinfo(listen_host.c_str(), nullptr, &hints, &found); code != 0) {
    *error = "listen_host " + listen_host + ": " + gai_strerror(code);
    return Status::kInvalid;
  }
  const std::string host = numeric(found->ai_addr);
  freeaddrinfo(found);
  if (host != "0.0.0.0" && host != "::") {
    *out = {host};
    return Status::kOk;
  }
  *out = host_addresses();
  if (out->empty()) out->push_back("127.0.0.1");
  return Status::kOk;
}

bool in_range(const char* field, uint64_t value, uint64_t least, uint64_t most, std::string* error) {
  if (value >= least && value <= most) return true;
  *error = std::string("tcp: ") + field + " must be from " + std::to_string(least) + " to " + std::to_string(most) + "; got " +
           std::to_string(value);
  return false;
}

}  // namespace

TransportMaker tcp_transport(TcpOptions options) {
  return {&TcpTransport::probe,
          [options](const TransportSetup& setup, std::string* error) { return TcpTransport::make(options, setup, error); }};
}

TransportInfo TcpTransport::probe() {
  TransportInfo info{"tcp", true, "", 1u << static_cast<unsigned>(MemoryKind::kHost), false, false};
  const int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (descriptor < 0) {
    info.available = false;
    info.reason = std::string("no socket: ") + std::strerror(errno);
  } else {
    close(descriptor);
  }
  return info;
}

std::unique_ptr<Transport> TcpTransport::make(const TcpOptions& options, const TransportSetup& setup, std::string* error) {
  const bool is_sound = in_range("streams_large", options.streams_large, 1, kTcpStreamsMax, error) &&
                        in_range("streams_small", options.streams_small, 1, kTcpStreamsMax, error) &&
                        in_range("window_bytes", options.window_bytes, 64 << 10, 1 << 30, error) &&
                        in_range("buffer_bytes", options.buffer_bytes, 0, 1 << 30, error) &&
                        in_range("hosts", options.hosts.size(), 0, kTcpHostsMax, error);
  if (!is_sound) return nullptr;
  std::unique_ptr<TcpTransport> made(new TcpTransport());
  made->info_ = probe();
  made->shared_.options = options;
  if (made->open(setup, error) != Status::kOk) return nullptr;
  return made;
}

Status TcpTransport::open(const TransportSetup& setup, std::string* error) {
  shared_.host = setup.host;
  shared_.uuid = setup.uuid;
  shared_.epoch = setup.epoch;
  TcpOptions& options = shared_.options;
  if (options.listen_host.empty()) options.listen_host = setup.listen_host;
  if (options.hosts.empty()) {
    if (const Status status = hosts_of(options.listen_host, &options.hosts, error); status != Status::kOk) return status;
  }
  if (getrandom(shared_.nonce.data(), shared_.nonce.size(), 0) != static_cast<ssize_t>(shared_.nonce.size())) {
    *error = std::string("getrandom: ") + std::strerror(errno);
    return Status::kSystem;
  }
  if (const Status status = shared_.loop.open(error); status != Status::kOk) return status;
  timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  const itimerspec every{{0, kTickNs}, {0, kTickNs}};
  if (timer_ < 0 || timerfd_settime(timer_, 0, &every, nullptr) != 0) {
    *error = std::string("timerfd: ") + std::strerror(errno);
    return Status::kSystem;
  }
  if (const Status status = shared_.loop.watch(timer_, EPOLLIN, this, error); status != Status::kOk) return status;
  service_ = std::make_unique<TcpService>(shared_);
  return service_->listen(error);
}

TcpTransport::~TcpTransport() {
  peers_.clear();
  service_.reset();
  if (timer_ >= 0) close(timer_);
}

Status TcpTransport::add_pool(Pool* pool) {
  if (pool->kind() != MemoryKind::kHost) return Status::kUnsupported;
  if (shared_.pools.size() == kTcpPoolsMax) return Status::kFull;
  return shared_.pools.emplace(pool->id, pool).second ? Status::kOk : Status::kInvalid;
}

Status TcpTransport::remove_pool(Pool* pool) {
  const auto found = shared_.pools.find(pool->id);
  if (found == shared_.pools.end() || found->second != pool) return Status::kNotFound;
  if (service_->touches(*pool)) return Status::kBusy;
  for (const auto& [id, peer] : peers_)
    if (peer->touches(*pool)) return Status::kBusy;
  service_->forget_pool(pool->id);
  shared_.pools.erase(found);
  return Status::kOk;
}

void TcpTransport::describe(std::vector<uint8_t>* out) {
  TcpAddress address;
  address.uuid = shared_.uuid;
  address.epoch = shared_.epoch;
  address.nonce = shared_.nonce;
  address.port = service_->port();
  address.hosts = shared_.options.hosts;
  for (const auto& [id, pool] : shared_.pools) address.pools.push_back({id, pool->layout().hash()});
  address.encode(out);
}

Status TcpTransport::add_peer(uint32_t peer, std::span<const uint8_t> described, std::string* reason) {
  TcpAddress address;
  if (TcpAddress::decode(described, &address, reason) != Status::kOk) return Status::kUnsupported;
  const auto found = peers_.find(peer);
  const bool is_same = found != peers_.end() && found->second->address().uuid == address.uuid &&
                       found->second->address().epoch == address.epoch;
  if (found != peers_.end() && !is_same) remove_peer(peer);
  std::unique_ptr<TcpPeer>& kept = peers_[peer];
  if (kept == nullptr) {
    kept = std::make_unique<TcpPeer>(shared_, peer, address);
    if (kept->connect(reason) != Status::kOk) {
      peers_.erase(peer);
      return Status::kUnsupported;
    }
  } else {
    kept->update(address);
    if (kept->is_lost() && kept->connect(reason) != Status::kOk) return Status::kUnsupported;
  }
  service_->set_peer(address.uuid, address.epoch, peer);
  return Status::kOk;
}

void TcpTransport::remove_peer(uint32_t peer) {
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return;
  found->second->end(Status::kCancelled);
  service_->set_peer(found->second->address().uuid, found->second->address().epoch, 0);
  std::erase_if(operations_, [&](const auto& entry) { return entry.second.first == found->second.get(); });
  peers_.erase(found);
}

Cost TcpTransport::cost(uint32_t, const Operation&, uint64_t) { return kCost; }

Status TcpTransport::submit(uint32_t peer, const Operation& operation) {
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return Status::kNotFound;
  const auto pool = operation.local == nullptr ? shared_.pools.end() : shared_.pools.find(operation.local->id);
  if (pool == shared_.pools.end() || pool->second != operation.local || operations_.contains(operation.id)) return Status::kInvalid;
  const Status status = found->second->submit(operation);
  if (status != Status::kOk) return status;
  operations_.emplace(operation.id, std::pair{found->second.get(), operation.deadline_ns});
  if (operation.deadline_ns != 0) deadlines_.emplace(operation.deadline_ns, operation.id);
  return Status::kOk;
}

void TcpTransport::cancel(uint64_t id) {
  const auto found = operations_.find(id);
  if (found != operations_.end()) found->second.first->stop(id, Status::kCancelled);
}

Status TcpTransport::notify(uint32_t peer, std::span<const uint8_t> bytes) {
  const auto found = peers_.find(peer);
  return found == peers_.end() ? Status::kNotFound : found->second->notify(bytes);
}

void TcpTransport::ready(uint32_t) {
  uint64_t ticks;
  [[maybe_unused]] const ssize_t taken = read(timer_, &ticks, sizeof(ticks));
}

void TcpTransport::expire(uint64_t now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const uint64_t id = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    const auto found = operations_.find(id);
    if (found != operations_.end()) found->second.first->stop(id, Status::kDeadline);
  }
  if (now < tick_ns_) return;
  tick_ns_ = now + kTickNs;
  for (const auto& [id, peer] : peers_) peer->tick(now);
  service_->tick(now);
}

bool TcpTransport::progress(std::vector<Completion>* completions) {
  const uint64_t now = shared_.host->now_ns();
  if (now - seen_ns_ > kPauseNs) shared_.awake_ns = now;
  seen_ns_ = now;
  expire(now);
  bool has_worked = shared_.loop.run(now + kSliceNs, [&] { return shared_.host->now_ns(); });
  for (const Completion& completion : shared_.completions) {
    const auto found = operations_.find(completion.id);
    if (found != operations_.end()) {
      if (found->second.second != 0) deadlines_.erase({found->second.second, completion.id});
      operations_.erase(found);
    }
    completions->push_back(completion);
    has_worked = true;
  }
  shared_.completions.clear();
  // The host may remove or add peers in this call.
  for (const auto& [peer, why] : std::exchange(shared_.lost, {})) shared_.host->peer_lost(peer, why);
  return has_worked;
}

}  // namespace millrace::kv
