// The agent's face: what callers of any thread may do, checked and handed to the progress thread. See agent.h; the thread itself
// is in the files agent_*.cc.
#include "agent.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "../transport/transports.h"
#include "agent_state.h"

namespace millrace::kv {
namespace {

constexpr uint32_t kSlotBits = 16;
static_assert(kOperationsMost == 1u << kSlotBits);

uint64_t clock_ns(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
}

bool may_use(const AgentOptions& options, const TransportInfo& info) {
  if (options.transports.empty()) return !info.only_by_name;
  for (const std::string& allowed : options.transports)
    if (allowed == info.name) return true;
  return false;
}

}  // namespace

const PoolDescription* Peer::pool(uint32_t pool_id) const {
  for (const PoolDescription& pool : metadata.pools)
    if (pool.id == pool_id) return &pool;
  return nullptr;
}

Agent::State::~State() {
  if (epoll >= 0) ::close(epoll);
  if (wake_descriptor >= 0) ::close(wake_descriptor);
}

uint64_t Agent::State::now_ns() { return options.now_ns ? options.now_ns() : clock_ns(CLOCK_MONOTONIC); }

std::shared_ptr<const Tables> Agent::State::tables() {
  const std::lock_guard lock(tables_lock);
  return tables_now;
}

void Agent::State::kick() {
  if (!is_sleeping.exchange(false, std::memory_order_seq_cst)) return;
  const uint64_t one = 1;
  // It can only fail when the count is at its end, and then the descriptor is readable already.
  [[maybe_unused]] const ssize_t written = write(wake_descriptor, &one, sizeof(one));
}

Agent::Agent(std::unique_ptr<State> state) : state_(std::move(state)) {}

Agent::~Agent() { close(); }

uint64_t Agent::now_ns() const { return state_->now_ns(); }

std::vector<TransportInfo> Agent::probe() {
  std::vector<TransportInfo> found;
  for (const TransportMaker& maker : built_in_transports()) found.push_back(maker.probe());
  return found;
}

Status Agent::create(const AgentOptions& options, std::unique_ptr<Agent>* out, std::string* error) {
  if (options.name.size() > kAgentNameBytesMax) {
    *error = "name must have at most " + std::to_string(kAgentNameBytesMax) + " bytes";
    return Status::kInvalid;
  }
  if (options.operations_max < 1 || options.operations_max > kOperationsMost) {
    *error = "operations_max must be from 1 to " + std::to_string(kOperationsMost) + "; got " +
             std::to_string(options.operations_max);
    return Status::kInvalid;
  }
  auto state = std::make_unique<State>();
  state->options = options;
  state->uuid = options.uuid;
  state->operations_max = options.operations_max;
  state->epoch = clock_ns(CLOCK_REALTIME);
  if (state->uuid == Uuid{} && getrandom(state->uuid.data(), state->uuid.size(), 0) != ssize_t{16}) {
    *error = std::string("no random bytes: ") + std::strerror(errno);
    return Status::kSystem;
  }
  state->records = std::make_unique<Record[]>(options.operations_max);
  state->free_slots = std::make_unique<SharedRing<uint32_t>>(options.operations_max);
  for (uint32_t slot = 0; slot < options.operations_max; slot++) state->free_slots->push(slot);
  state->submissions = std::make_unique<SharedRing<Submission>>(options.operations_max + kNotesMax);
  state->events = std::make_unique<EventRing<Event>>(options.operations_max);
  state->wake_descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  state->epoll = epoll_create1(EPOLL_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  if (state->wake_descriptor < 0 || state->epoll < 0 ||
      epoll_ctl(state->epoll, EPOLL_CTL_ADD, state->wake_descriptor, &event) != 0) {
    *error = std::string("no descriptor to sleep on: ") + std::strerror(errno);
    return Status::kSystem;
  }
  if (const Status status = make_transports(*state, error); status != Status::kOk) return status;
  State* const shared = state.get();
  state->thread = std::thread([shared] { shared->run(); });
  out->reset(new Agent(std::move(state)));
  return Status::kOk;
}

Status Agent::make_transports(State& state, std::string* error) {
  const TransportSetup setup{&state, state.options.name, state.uuid, state.epoch, state.options.listen_host};
  std::vector<TransportMaker> makers = state.options.more_transports;
  for (const TransportMaker& maker : built_in_transports()) makers.push_back(maker);
  for (const TransportMaker& maker : makers) {
    const TransportInfo info = maker.probe();
    bool is_there = false;
    for (const auto& other : state.transports) is_there = is_there || other->name == info.name;
    // One of the caller's goes before a built-in one of the same name.
    if (is_there || !info.available || !may_use(state.options, info)) continue;
    if (state.transports.size() == kTransportsMax) break;
    auto made = std::make_unique<TransportState>();
    made->name = info.name;
    made->transport = maker.make(setup, error);
    if (made->transport == nullptr) continue;
    made->descriptor = made->transport->wait_descriptor();
    epoll_event event{};
    event.events = EPOLLIN;
    if (made->descriptor >= 0 && epoll_ctl(state.epoll, EPOLL_CTL_ADD, made->descriptor, &event) != 0) {
      *error = made->name + " has a descriptor that cannot be waited on: " + std::strerror(errno);
      return Status::kSystem;
    }
    state.transports.push_back(std::move(made));
  }
  if (!state.transports.empty()) return Status::kOk;
  *error = "transports: none of those that may be used is available here" + (error->empty() ? "" : ": " + *error);
  return Status::kUnsupported;
}

Status Agent::State::transform_of(const TransferRequest& request, Peer& peer, const Pool& local,
                                  const PoolDescription& remote, std::shared_ptr<const Transform>* out,
                                  std::string* error) {
  const std::lock_guard lock(peer.transforms_lock);
  for (const Peer::TransformOf& known_one : peer.transforms) {
    if (known_one.local_pool == local.id && known_one.remote_pool == remote.id &&
        known_one.direction == request.direction &&
        std::memcmp(&known_one.part, &request.part, sizeof(Part)) == 0) {
      *out = known_one.transform;
      return Status::kOk;
    }
  }
  const bool reads = request.direction == Direction::kRead;
  const Status status = Transform::make(reads ? remote.layout : local.layout(), reads ? local.layout() : remote.layout,
                                        request.part, out, error);
  if (status != Status::kOk) return status;
  if (peer.transforms.size() == kTransformsMax) peer.transforms.clear();
  peer.transforms.push_back({local.id, remote.id, request.direction, request.part, *out});
  return Status::kOk;
}

Status Agent::State::check(const TransferRequest& request, const std::shared_ptr<Peer>& peer,
                           const std::shared_ptr<PoolEntry>& local, std::shared_ptr<const Transform>* transform,
                           std::string* error) {
  const PoolDescription* remote = peer->pool(request.remote_pool);
  if (remote == nullptr) {
    *error = "remote_pool: peer " + std::to_string(peer->id) + " has no pool " + std::to_string(request.remote_pool);
    return Status::kNotFound;
  }
  const size_t count = request.local_blocks.size();
  const auto wrong_length = [&](const char* field, size_t length) {
    *error = std::string(field) + " must be as many as local_blocks, " + std::to_string(count) + "; got " +
             std::to_string(length);
    return Status::kInvalid;
  };
  if (count < 1 || count > kBlocksPerTransferMax) {
    *error = "local_blocks must be from 1 to " + std::to_string(kBlocksPerTransferMax) + "; got " + std::to_string(count);
    return Status::kInvalid;
  }
  if (request.remote_blocks.size() != count) return wrong_length("remote_blocks", request.remote_blocks.size());
  if (request.remote_generations.size() != (remote->has_generations ? count : 0) &&
      (remote->has_generations || request.remote_generations.size() != count))
    return wrong_length("remote_generations", request.remote_generations.size());
  for (const uint32_t block : request.remote_blocks) {
    if (block < remote->layout.blocks()) continue;
    *error = "remote_blocks must be below " + std::to_string(remote->layout.blocks()) + "; got " + std::to_string(block);
    return Status::kInvalid;
  }
  if (request.notification.size() > kCallerNotificationBytesMax) {
    *error = "notification must have at most " + std::to_string(kCallerNotificationBytesMax) + " bytes; got " +
             std::to_string(request.notification.size());
    return Status::kInvalid;
  }
  if (!request.transport.empty()) {
    const uint32_t ways = peer->ways.load(std::memory_order_relaxed);
    bool reaches = false;
    for (size_t i = 0; i < transports.size(); i++)
      reaches = reaches || (transports[i]->name == request.transport && (ways >> i & 1) != 0);
    if (!reaches) {
      *error = "transport: peer " + std::to_string(peer->id) + " cannot be reached by " + request.transport;
      return Status::kUnsupported;
    }
  }
  return transform_of(request, *peer, *local->pool, *remote, transform, error);
}

int64_t Agent::submit(TransferRequest request, std::string* error) {
  State& state = *state_;
  const Inside inside(state.callers_inside);
  if (state.is_closed.load(std::memory_order_seq_cst)) {
    *error = "the agent is closed";
    return static_cast<int64_t>(Status::kClosed);
  }
  uint32_t slot;
  if (const Status status = state.post(std::move(request), &slot, error); status != Status::kOk)
    return static_cast<int64_t>(status);
  const uint64_t id = state.records[slot].operation.id;
  // There is room for every record and every note.
  if (!state.submissions->push({slot, nullptr})) std::abort();
  state.kick();
  return static_cast<int64_t>(id);
}

Status Agent::State::post(TransferRequest request, uint32_t* slot_out, std::string* error) {
  const auto refuse = [&](Status status, const std::string& why) {
    *error = why;
    return status;
  };
  const std::shared_ptr<const Tables> tables = this->tables();
  const auto peer = tables->peers.find(request.peer);
  if (peer == tables->peers.end()) {
    const bool was = request.peer != 0 && request.peer <= tables->peers_made;
    return refuse(was ? Status::kStale : Status::kNotFound,
                  "peer " + std::to_string(request.peer) + (was ? " was removed or has begun another epoch" : " is not known"));
  }
  if (const Status status = peer->second->state.load(std::memory_order_acquire); status != Status::kOk)
    return refuse(status, "peer " + std::to_string(request.peer) + ": " + status_name(status));
  const auto local = tables->pools.find(request.local_pool);
  if (local == tables->pools.end())
    return refuse(Status::kNotFound, "local_pool: no pool " + std::to_string(request.local_pool) + " here");
  std::shared_ptr<const Transform> transform;
  if (const Status status = check(request, peer->second, local->second, &transform, error); status != Status::kOk)
    return status;
  uint32_t slot;
  if (!free_slots->pop(&slot)) {
    return refuse(Status::kFull, "operations_max: " + std::to_string(operations_max) +
                                     " transfers are under way or not polled");
  }
  Record& record = records[slot];
  Status status = local->second->use() ? Status::kOk : Status::kNotFound;
  if (status != Status::kOk) {
    *error = "local_pool is being removed";
  } else {
    // From here on the blocks are not reused, whatever their owner does.
    status = record.hold.enter(*local->second->pool, request.local_blocks, request.local_generations, error);
    if (status != Status::kOk) local->second->unuse();
  }
  if (status != Status::kOk) {
    free_slots->push(slot);
    return status;
  }
  if (!request.notification.empty())
    request.notification.insert(request.notification.begin(), static_cast<uint8_t>(Envelope::kCaller));
  record.request = std::move(request);
  record.peer = peer->second;
  record.pool = local->second;
  record.operation = {};
  record.operation.transform = std::move(transform);
  record.posted_ns = now_ns();
  record.lives++;
  const uint64_t id = record.lives << kSlotBits | slot;
  record.operation.id = id;
  record.word.store(id << 1, std::memory_order_release);
  transfers_active.fetch_add(1, std::memory_order_relaxed);
  *slot_out = slot;
  return Status::kOk;
}

void Agent::cancel(uint64_t id) {
  State& state = *state_;
  const uint64_t slot = id & (kOperationsMost - 1);
  if (slot >= state.operations_max) return;
  uint64_t expected = id << 1;
  if (!state.records[slot].word.compare_exchange_strong(expected, id << 1 | 1, std::memory_order_seq_cst)) return;
  state.cancels_pending.store(true, std::memory_order_seq_cst);
  state.kick();
}

Status Agent::notify(uint32_t peer, std::span<const uint8_t> bytes) {
  State& state = *state_;
  const Inside inside(state.callers_inside);
  if (bytes.size() > kCallerNotificationBytesMax) return Status::kInvalid;
  if (state.is_closed.load(std::memory_order_seq_cst)) return Status::kClosed;
  const std::shared_ptr<const Tables> tables = state.tables();
  const auto found = tables->peers.find(peer);
  if (found == tables->peers.end()) return peer != 0 && peer <= tables->peers_made ? Status::kStale : Status::kNotFound;
  if (const Status status = found->second->state.load(std::memory_order_acquire); status != Status::kOk) return status;
  if (state.notes_pending.fetch_add(1, std::memory_order_relaxed) >= kNotesMax) {
    state.notes_pending.fetch_sub(1, std::memory_order_relaxed);
    return Status::kFull;
  }
  auto note = std::make_unique<Note>();
  note->peer = peer;
  note->bytes.reserve(bytes.size() + 1);
  note->bytes.push_back(static_cast<uint8_t>(Envelope::kCaller));
  note->bytes.insert(note->bytes.end(), bytes.begin(), bytes.end());
  if (!state.submissions->push({0, std::move(note)})) std::abort();
  state.kick();
  return Status::kOk;
}

uint32_t Agent::poll(uint32_t max, std::vector<Event>* out) {
  State& state = *state_;
  uint32_t count = 0;
  Event event;
  const auto take = [&] {
    if (state.events->pop(&event)) return true;
    if (!state.is_over.load(std::memory_order_acquire) || state.events_waiting.empty()) return false;
    event = std::move(state.events_waiting.front());
    state.events_waiting.pop_front();
    return true;
  };
  for (; count < max && take(); count++) {
    if (event.kind == EventKind::kCompletion) {
      state.free_slots->push(static_cast<uint32_t>(event.id & (kOperationsMost - 1)));
    } else if (event.kind == EventKind::kNotification) {
      state.inbox_bytes.fetch_sub(event.notification.size() + sizeof(Event), std::memory_order_relaxed);
    }
    out->push_back(std::move(event));
  }
  if (count > 0 && state.events_pending.load(std::memory_order_seq_cst)) state.kick();
  return count;
}

}  // namespace millrace::kv
