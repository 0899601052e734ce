// The transport's calls, its settings and its clock. Lines to other agents are in ucx_transport_lines.cc. See ucx_transport.h.
#include "ucx_transport.h"

#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

#include "ucx_process.h"

namespace millrace::kv {
namespace {

constexpr uint64_t kSliceNs = 200'000;
constexpr uint64_t kTickNs = 100'000'000;
// Not called for so long, this side was standing still: the timer wakes it oftener.
constexpr uint64_t kPauseNs = 300'000'000;
// What is in flight is looked after without a pause for so long after it last moved, and then every millisecond: a peer that
// makes room for more messages sends no event of it.
constexpr uint64_t kEagerNs = 2'000'000;
constexpr uint64_t kBusyTickNs = 1'000'000;
constexpr int kProgressesMax = 64;
constexpr int kEventsMax = 32;
// What the end of the transport waits for: messages to go, and for endpoints to close.
constexpr uint64_t kEndNs = 50'000'000;
// With a device that moves the bytes; and all else, which other transports do better: on one host shm and cma, between hosts
// tcp. So little is said for it that no measurement of theirs makes it look better.
constexpr Cost kDirectCost = {10'000, 10'000'000'000};
constexpr Cost kLastResortCost = {1'000'000'000, 1'000'000};

bool add_to(int epoll, int descriptor) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = descriptor;
  return epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event) == 0;
}

// The agent's clock may be the caller's and stand still.
uint64_t real_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace

TransportMaker ucx_transport() { return {&UcxTransport::probe, &UcxTransport::make}; }

TransportInfo UcxTransport::probe() {
  TransportInfo info{"ucx", false, "", 1u << static_cast<unsigned>(MemoryKind::kHost), false, false, true};
  const UcxApi* const api = UcxApi::get(&info.reason);
  info.available = api != nullptr;
  if (api == nullptr) return info;
  info.only_by_name = !has_rdma_device();
  info.reason = "UCX " + std::to_string(api->version[0]) + "." + std::to_string(api->version[1]) + "." + std::to_string(api->version[2]);
  if (info.only_by_name) info.reason += "; no RDMA device here, so that it is used only where it is named";
  return info;
}

std::unique_ptr<Transport> UcxTransport::make(const TransportSetup& setup, std::string* error) {
  std::unique_ptr<UcxTransport> made(new UcxTransport());
  made->info_ = probe();
  made->shared_.context = UcxContext::get(error);
  if (made->shared_.context == nullptr || made->open(setup, error) != Status::kOk) return nullptr;
  return made;
}

Status UcxTransport::open(const TransportSetup& setup, std::string* error) {
  shared_.host = setup.host;
  UcxAddress& self = shared_.self;
  self.uuid = setup.uuid;
  self.epoch = setup.epoch;
  self.boot = host_boot();
  self.pid_namespace = pid_namespace();
  self.pid = static_cast<uint32_t>(getpid());
  self.start_time = process_start_time(self.pid);
  self.has_shared_memory = shared_.context->has_shared_memory();
  const UcxApi& api = shared_.api();
  UcpWorkerParams params{};
  params.field_mask = kUcpWorkerThreadMode;
  params.thread_mode = kUcsThreadSerialized;
  UcsStatus status = api.worker_create(shared_.context->handle(), &params, &shared_.worker);
  if (status != kUcsOk) shared_.worker = nullptr;
  void* address = nullptr;
  size_t size = 0;
  const UcpAmHandler handler{kUcpAmHandlerId | kUcpAmHandlerCallback | kUcpAmHandlerArgument, kUcxMessageId, 0, received, this};
  if (status == kUcsOk) status = api.worker_set_am_handler(shared_.worker, &handler);
  if (status == kUcsOk) status = api.worker_get_efd(shared_.worker, &worker_descriptor_);
  if (status == kUcsOk) status = api.worker_get_address(shared_.worker, &address, &size);
  if (status != kUcsOk) {
    *error = std::string("a worker of UCX: ") + api.status_string(status);
    return Status::kSystem;
  }
  self.worker.assign(static_cast<uint8_t*>(address), static_cast<uint8_t*>(address) + size);
  api.worker_release_address(shared_.worker, address);
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  const itimerspec every{{0, kTickNs}, {0, kTickNs}};
  const bool is_open = getrandom(self.nonce.data(), self.nonce.size(), 0) == static_cast<ssize_t>(self.nonce.size()) && epoll_ >= 0 &&
                       timer_ >= 0 && timerfd_settime(timer_, 0, &every, nullptr) == 0 && add_to(epoll_, timer_) &&
                       add_to(epoll_, worker_descriptor_);
  if (is_open) return Status::kOk;
  *error = std::string("opening the ucx transport: ") + std::strerror(errno);
  return Status::kSystem;
}

UcxTransport::~UcxTransport() {
  if (shared_.worker != nullptr) end_worker();
  lines_.clear();
  for (const auto& [id, registered] : shared_.pools) shared_.context->unregister_pool(*registered.pool, registered.memory);
  if (timer_ >= 0) close(timer_);
  if (epoll_ >= 0) close(epoll_);
}

void UcxTransport::end_worker() {
  const uint64_t begin = real_ns();
  const auto wait_for = [&](auto is_done) {
    for (bool waits = true; waits && real_ns() - begin < kEndNs;) {
      shared_.api().worker_progress(shared_.worker);
      waits = false;
      for (const auto& [key, line] : lines_) waits = waits || !is_done(*line);
    }
  };
  for (const auto& [key, line] : lines_) {
    line->peer.end(Status::kCancelled);
    // Tells the end of what is quiet, which is all but what devices still move.
    line->peer.work(0);
    if (line->is_ready) line->link.send(UcxKind::kGoodbye, 0, {});
    line->link.pump();
  }
  wait_for([](const Line& line) { return line.link.is_idle() || line.link.has_failed(); });
  for (const auto& [key, line] : lines_) line->link.close();
  wait_for([](const Line& line) { return line.link.is_closed(); });
  for (const auto& [key, line] : lines_) {
    line->link.abandon();
    line->peer.release_keys();
  }
  // Messages that UCX had until now go with the lines, after it.
  shared_.api().worker_destroy(shared_.worker);
}

Status UcxTransport::add_pool(Pool* pool) {
  if (pool->kind() != MemoryKind::kHost) return Status::kUnsupported;
  if (shared_.pools.size() == kTcpPoolsMax) return Status::kFull;
  if (shared_.pools.contains(pool->id)) return Status::kInvalid;
  UcxShared::Registered registered{pool, nullptr, {}};
  std::string error;
  const Status status = shared_.context->register_pool(*pool, &registered.memory, &registered.rkey, &error);
  if (status == Status::kOk) shared_.pools.emplace(pool->id, std::move(registered));
  return status;
}

Status UcxTransport::remove_pool(Pool* pool) {
  const auto found = shared_.pools.find(pool->id);
  if (found == shared_.pools.end() || found->second.pool != pool) return Status::kNotFound;
  for (const auto& [key, line] : lines_)
    if (line->peer.touches(*pool) || line->service.touches(*pool)) return Status::kBusy;
  for (const auto& [key, line] : lines_) line->service.forget_pool(pool->id);
  shared_.context->unregister_pool(*pool, found->second.memory);
  shared_.pools.erase(found);
  return Status::kOk;
}

void UcxTransport::describe(std::vector<uint8_t>* out) {
  UcxAddress address = shared_.self;
  for (const auto& [id, registered] : shared_.pools) {
    const Pool& pool = *registered.pool;
    address.pools.push_back({id, pool.layout().hash(), reinterpret_cast<uintptr_t>(pool.address()), pool.bytes(), registered.rkey});
  }
  address.encode(out);
}

UcxTransport::Line* UcxTransport::line_of(uint32_t peer) {
  const auto found = peers_.find(peer);
  return found == peers_.end() ? nullptr : found->second;
}

Cost UcxTransport::cost(uint32_t peer, const Operation& operation, uint64_t) {
  Line* const line = line_of(peer);
  const bool is_direct = line != nullptr && !line->link.is_same_host() && line->peer.is_direct(operation.remote_pool);
  return is_direct ? kDirectCost : kLastResortCost;
}

Status UcxTransport::submit(uint32_t peer, const Operation& operation) {
  Line* const line = line_of(peer);
  if (line == nullptr) return Status::kNotFound;
  const auto pool = operation.local == nullptr ? shared_.pools.end() : shared_.pools.find(operation.local->id);
  if (pool == shared_.pools.end() || pool->second.pool != operation.local || operations_.contains(operation.id)) return Status::kInvalid;
  const Status status = line->peer.submit(operation);
  if (status != Status::kOk) return status;
  operations_.emplace(operation.id, std::pair{line, operation.deadline_ns});
  if (operation.deadline_ns != 0) deadlines_.emplace(operation.deadline_ns, operation.id);
  return Status::kOk;
}

void UcxTransport::cancel(uint64_t id) {
  const auto found = operations_.find(id);
  if (found != operations_.end()) found->second.first->peer.stop(id, Status::kCancelled);
}

Status UcxTransport::notify(uint32_t peer, std::span<const uint8_t> bytes) {
  Line* const line = line_of(peer);
  if (line == nullptr) return Status::kNotFound;
  shared_.is_armed = false;
  return line->peer.notify(bytes);
}

void UcxTransport::expire(uint64_t now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const uint64_t id = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    const auto found = operations_.find(id);
    if (found != operations_.end()) found->second.first->peer.stop(id, Status::kDeadline);
  }
}

bool UcxTransport::poll_events() {
  epoll_event events[kEventsMax];
  const int count = epoll_wait(epoll_, events, kEventsMax, 0);
  for (int i = 0; i < count; i++) {
    const int descriptor = events[i].data.fd;
    if (descriptor == timer_) {
      uint64_t ticks;
      [[maybe_unused]] const ssize_t taken = read(timer_, &ticks, sizeof ticks);
    } else if (descriptor == worker_descriptor_) {
      shared_.is_armed = false;
    } else if (const auto found = processes_.find(descriptor); found != processes_.end()) {
      epoll_ctl(epoll_, EPOLL_CTL_DEL, descriptor, nullptr);
      found->second->has_process_ended = true;
      found->second->fault = "its process ended";
      shared_.is_armed = false;
      processes_.erase(found);
    }
  }
  return count > 0;
}

void UcxTransport::set_timer(bool is_busy) {
  if (std::exchange(is_timer_busy_, is_busy) == is_busy) return;
  const long period = static_cast<long>(is_busy ? kBusyTickNs : kTickNs);
  const itimerspec every{{0, period}, {0, period}};
  timerfd_settime(timer_, 0, &every, nullptr);
}

bool UcxTransport::progress(std::vector<Completion>* completions) {
  const uint64_t now = shared_.host->now_ns();
  if (now - seen_ns_ > kPauseNs) shared_.awake_ns = now;
  seen_ns_ = now;
  expire(now);
  poll_events();
  bool has_worked = false;
  // Armed, and without an event, there is nothing to find; and looking is dear.
  for (int i = 0; i < kProgressesMax && !shared_.is_armed && shared_.api().worker_progress(shared_.worker) != 0; i++) has_worked = true;
  for (const std::vector<uint8_t>& hello : std::exchange(hellos_, {})) take_hello(hello);
  if (now >= tick_ns_) tick(now);
  for (auto entry = lines_.begin(); entry != lines_.end();) {
    Line& line = *entry->second;
    ++entry;
    has_worked |= tend(line, now + kSliceNs);
  }
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
  bool is_busy = false;
  for (const auto& [key, line] : lines_) is_busy = is_busy || !line->link.is_idle() || line->peer.is_moving();
  set_timer(is_busy);
  if (has_worked) moved_ns_ = now;
  else if (is_busy && now - moved_ns_ < kEagerNs) return true;
  // Looked at with every tick, armed or not.
  if (is_busy) shared_.is_armed = false;
  if (!has_worked && !shared_.is_armed) {
    const UcsStatus status = shared_.api().worker_arm(shared_.worker);
    shared_.is_armed = status == kUcsOk;
    has_worked = status == kUcsBusy;
  }
  return has_worked;
}

}  // namespace millrace::kv
