// The transport inside one process, with its seeded faults: the vehicle of every test of the agent. See memory_transport.h.
#include "memory_transport.h"

#include <cstring>
#include <list>
#include <random>

#include "../transfer/pool.h"
#include "memory_work.h"

namespace millrace::kv {
namespace {

constexpr uint32_t kSlicesAtOnce = 4;

const TransportInfo kInfo = {"memory", true, "agents of one process only", 1u << static_cast<int>(MemoryKind::kHost), true, true};

class MemoryTransport final : public Transport {
 public:
  MemoryTransport(const MemoryOptions& options, const TransportSetup& setup);
  ~MemoryTransport() override;

  const TransportInfo& info() const override { return kInfo; }
  Status add_pool(Pool* pool) override;
  Status remove_pool(Pool* pool) override;
  void describe(std::vector<uint8_t>* out) override { out->assign(own_->key.begin(), own_->key.end()); }
  Status add_peer(uint32_t peer, std::span<const uint8_t> described, std::string* reason) override;
  void remove_peer(uint32_t peer) override;
  Cost cost(uint32_t, const Operation&, uint64_t) override { return {2'000, 8'000'000'000}; }
  Status submit(uint32_t peer, const Operation& operation) override;
  void cancel(uint64_t id) override;
  Status notify(uint32_t peer, std::span<const uint8_t> bytes) override;
  bool progress(std::vector<Completion>* completions) override;
  int wait_descriptor() override { return own_->descriptor; }

 private:
  using Works = std::list<MemoryWork>;
  enum class Step { kIdle, kWorked, kEnded };

  Status serve(MemoryWork& work);
  bool take_inbox();
  Step step(Works::iterator work, std::vector<Completion>* completions);
  void end(Works::iterator work, Status status, std::vector<Completion>* completions);
  void lose(const MemoryKey& key, const std::string& why, std::vector<Completion>* completions);

  const MemoryOptions options_;
  TransportHost* const host_;
  const std::shared_ptr<MemoryEndpoint> own_;
  std::mt19937_64 random_;
  std::map<uint32_t, std::shared_ptr<MemoryEndpoint>> peers_;
  std::map<MemoryKey, uint32_t> numbers_;
  Works works_;
  // Cut off by a fault, or found to be gone, in this call of progress.
  std::vector<std::pair<MemoryKey, std::string>> lost_;
};

MemoryKey key_of(const TransportSetup& setup) {
  MemoryKey key;
  std::memcpy(key.data(), setup.uuid.data(), setup.uuid.size());
  std::memcpy(key.data() + setup.uuid.size(), &setup.epoch, sizeof(setup.epoch));
  return key;
}

MemoryTransport::MemoryTransport(const MemoryOptions& options, const TransportSetup& setup)
    : options_(options), host_(setup.host), own_(std::make_shared<MemoryEndpoint>(key_of(setup))),
      random_(options.faults.seed ^ setup.epoch) {
  MemoryEndpoint::open(own_);
}

MemoryTransport::~MemoryTransport() {
  std::vector<Completion> nobodys;
  while (!works_.empty()) end(works_.begin(), Status::kClosed, &nobodys);
  own_->close();
}

Status MemoryTransport::add_pool(Pool* pool) {
  if (pool->kind() != MemoryKind::kHost) return Status::kUnsupported;
  const std::lock_guard mine(own_->lock);
  own_->pools[pool->id] = {pool, 0};
  return Status::kOk;
}

Status MemoryTransport::remove_pool(Pool* pool) {
  const std::lock_guard mine(own_->lock);
  const auto found = own_->pools.find(pool->id);
  if (found == own_->pools.end()) return Status::kNotFound;
  if (found->second.uses != 0) return Status::kBusy;
  own_->pools.erase(found);
  return Status::kOk;
}

Status MemoryTransport::add_peer(uint32_t peer, std::span<const uint8_t> described, std::string* reason) {
  MemoryKey key;
  if (described.size() != key.size()) {
    *reason = "not a description of this transport";
    return Status::kInvalid;
  }
  std::memcpy(key.data(), described.data(), key.size());
  const std::shared_ptr<MemoryEndpoint> found = MemoryEndpoint::find(key);
  if (found == nullptr) {
    *reason = "that agent is not in this process";
    return Status::kUnsupported;
  }
  peers_[peer] = found;
  numbers_[key] = peer;
  const std::lock_guard mine(own_->lock);
  own_->known.insert(key);
  return Status::kOk;
}

void MemoryTransport::remove_peer(uint32_t peer) {
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return;
  for (MemoryWork& work : works_)
    if (work.peer == peer) work.is_cancelled = true;
  const MemoryKey key = found->second->key;
  numbers_.erase(key);
  peers_.erase(found);
  const std::lock_guard mine(own_->lock);
  own_->known.erase(key);
}

// Counts the operation in at the peer, and its pool as in use. All or nothing.
Status MemoryTransport::serve(MemoryWork& work) {
  const Operation& operation = work.operation;
  MemoryEndpoint& remote = *work.remote;
  const std::lock_guard theirs(remote.lock);
  if (!remote.is_open) return Status::kPeerLost;
  const auto use = remote.pools.find(operation.remote_pool);
  if (use == remote.pools.end()) return Status::kNotFound;
  if (!operation.notification.empty() && remote.known.count(own_->key) == 0) return Status::kNotAllowed;
  Pool& pool = *use->second.pool;
  const bool reads = operation.direction == Direction::kRead;
  // Runs come from what the peer said of itself, which may have been somebody else's word.
  for (const Run& run : work.runs) {
    const uint64_t offset = reads ? run.source : run.target;
    const uint64_t stride = reads ? run.source_stride : run.target_stride;
    const uint64_t extent = (run.count - 1) * stride + run.length;
    if (extent > pool.bytes() || offset > pool.bytes() - extent) return Status::kMismatch;
  }
  BlockHold hold;
  std::string error;
  const Status status = hold.serve(pool, operation.direction, operation.remote_blocks, operation.remote_generations, &error);
  if (status != Status::kOk) return status;
  work.served = ++remote.served;
  remote.serving.emplace(work.served, std::move(hold));
  use->second.uses++;
  return Status::kOk;
}

Status MemoryTransport::submit(uint32_t peer, const Operation& operation) {
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return Status::kPeerLost;
  if (works_.size() >= options_.operations_max) return Status::kFull;
  if (operation.local->kind() != MemoryKind::kHost) return Status::kUnsupported;
  MemoryWork work;
  work.operation = operation;
  work.peer = peer;
  work.remote = found->second;
  const bool reads = operation.direction == Direction::kRead;
  const auto count_of = static_cast<uint32_t>(operation.local_blocks.size());
  std::string error;
  Status status = operation.transform->lower((reads ? operation.remote_blocks : operation.local_blocks).data(),
                                             (reads ? operation.local_blocks : operation.remote_blocks).data(), count_of,
                                             &work.runs, &error);
  if (status != Status::kOk) return status;
  work.bytes = operation.transform->bytes_per_block() * count_of;
  status = serve(work);
  if (status != Status::kOk) return status;
  work.draw_faults(options_.faults, options_.counts.get(), random_);
  {
    const std::lock_guard mine(own_->lock);
    own_->pools[operation.local->id].uses++;
  }
  works_.push_back(std::move(work));
  return Status::kOk;
}

void MemoryTransport::cancel(uint64_t id) {
  for (MemoryWork& work : works_)
    if (work.operation.id == id) work.is_cancelled = true;
}

Status MemoryTransport::notify(uint32_t peer, std::span<const uint8_t> bytes) {
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return Status::kPeerLost;
  if (options_.faults.late != 0 && random_() % 10'000 < options_.faults.late) {
    count(options_.counts.get(), &MemoryFaultCounts::late);
    return Status::kFull;
  }
  if (options_.notes_allowed != nullptr && options_.notes_allowed->load(std::memory_order_acquire) == 0) return Status::kFull;
  const Status status = found->second->post({own_->key, false, {bytes.begin(), bytes.end()}});
  if (status == Status::kOk && options_.notes_allowed != nullptr)
    options_.notes_allowed->fetch_sub(1, std::memory_order_acq_rel);
  return status;
}

bool MemoryTransport::take_inbox() {
  own_->calm();
  std::deque<MemoryMessage> taken;
  {
    const std::lock_guard mine(own_->lock);
    if (own_->inbox.empty()) return false;
    taken.swap(own_->inbox);
  }
  for (const MemoryMessage& message : taken) {
    const auto number = numbers_.find(message.sender);
    if (number == numbers_.end()) continue;
    if (message.is_cut) lost_.push_back({message.sender, "the peer closed or cut us off"});
    else host_->notified(number->second, message.bytes);
  }
  // Others may have met a full inbox, and wait for room.
  if (taken.size() >= kInboxMax)
    for (const auto& [peer, endpoint] : peers_) endpoint->kick();
  return true;
}

MemoryTransport::Step MemoryTransport::step(Works::iterator it, std::vector<Completion>* completions) {
  MemoryWork& work = *it;
  const auto ended = [&](Status status) {
    end(it, status, completions);
    return Step::kEnded;
  };
  if (work.is_cancelled && work.linger_steps == 0) return ended(Status::kCancelled);
  if (work.is_dropped && !work.is_cancelled) return Step::kIdle;
  if (work.delay_steps > 0) {
    work.delay_steps--;
    return Step::kWorked;
  }
  std::unique_lock theirs(work.remote->lock);
  if (!work.remote->is_open) {
    theirs.unlock();
    if (work.is_cancelled) return ended(Status::kCancelled);
    lost_.push_back({work.remote->key, "the peer closed"});
    return Step::kIdle;
  }
  if (work.is_cancelled) {
    if (--work.linger_steps == 0) count(options_.counts.get(), &MemoryFaultCounts::lingered);
    // Over and over, so that whoever reuses the blocks too early sees it.
    if (work.copy_slice(options_.slice_bytes)) work.run = 0;
    return Step::kWorked;
  }
  if (work.stage == MemoryStage::kCopy) {
    if (work.copy_slice(options_.slice_bytes)) {
      if (work.is_corrupt) work.corrupt(random_, options_.counts.get());
      work.stage = work.operation.integrity == Integrity::kOff ? MemoryStage::kNotify : MemoryStage::kVerify;
      if (work.operation.integrity == Integrity::kSample)
        work.verified = static_cast<uint32_t>(
            work.operation.id % std::min<uint64_t>(kSampleBlocks, work.operation.local_blocks.size()));
    } else if (work.copied >= work.fail_after || work.copied >= work.cut_after) {
      theirs.unlock();
      const bool is_cut = work.copied >= work.cut_after;
      count(options_.counts.get(), is_cut ? &MemoryFaultCounts::cut : &MemoryFaultCounts::partial);
      if (!is_cut) return ended(Status::kSystem);
      work.remote->post({own_->key, true, {}});
      lost_.push_back({work.remote->key, "cut off"});
      return Step::kIdle;
    }
    return Step::kWorked;
  }
  if (work.stage == MemoryStage::kVerify && work.verified < work.operation.local_blocks.size()) {
    if (work.verify_block()) return Step::kWorked;
    if (work.operation.integrity == Integrity::kFull && work.is_corrupt)
      count(options_.counts.get(), &MemoryFaultCounts::corrupted_found);
    theirs.unlock();
    return ended(Status::kCorrupt);
  }
  theirs.unlock();
  work.stage = MemoryStage::kNotify;
  if (!work.operation.notification.empty()) {
    const std::span<const uint8_t> bytes = work.operation.notification;
    const Status status = work.remote->post({own_->key, false, {bytes.begin(), bytes.end()}});
    if (status == Status::kFull) return Step::kIdle;
    if (status != Status::kOk) return ended(status);
  }
  return ended(Status::kOk);
}

// Its bytes are quiet: nothing but `step` touches them.
void MemoryTransport::end(Works::iterator work, Status status, std::vector<Completion>* completions) {
  {
    const std::lock_guard theirs(work->remote->lock);
    if (work->remote->is_open) {
      work->remote->serving.erase(work->served);
      work->remote->pools[work->operation.remote_pool].uses--;
    }
  }
  {
    const std::lock_guard mine(own_->lock);
    own_->pools[work->operation.local->id].uses--;
  }
  completions->push_back({work->operation.id, status, work->copied});
  works_.erase(work);
}

void MemoryTransport::lose(const MemoryKey& key, const std::string& why, std::vector<Completion>* completions) {
  for (auto it = works_.begin(); it != works_.end();) {
    const auto next = std::next(it);
    // Those of a peer that was removed before end as cancelled.
    if (it->remote->key == key && !it->is_cancelled) end(it, Status::kPeerLost, completions);
    it = next;
  }
  const auto number = numbers_.find(key);
  if (number == numbers_.end()) return;
  const uint32_t peer = number->second;
  remove_peer(peer);
  host_->peer_lost(peer, why);
}

bool MemoryTransport::progress(std::vector<Completion>* completions) {
  bool has_worked = take_inbox();
  uint32_t slices = 0;
  for (auto it = works_.begin(); it != works_.end() && slices < kSlicesAtOnce;) {
    const auto next = std::next(it);
    const Step stepped = step(it, completions);
    if (stepped != Step::kIdle) {
      has_worked = true;
      slices++;
    }
    // The next ones have their turn, too.
    if (stepped == Step::kWorked) works_.splice(works_.end(), works_, it);
    it = next;
  }
  for (const auto& [key, why] : lost_) lose(key, why, completions);
  has_worked |= !lost_.empty();
  lost_.clear();
  return has_worked;
}

}  // namespace

TransportMaker memory_transport(const MemoryOptions& options) {
  return {[] { return kInfo; },
          [options](const TransportSetup& setup, std::string* error) -> std::unique_ptr<Transport> {
            auto made = std::make_unique<MemoryTransport>(options, setup);
            if (made->wait_descriptor() >= 0) return made;
            *error = "memory: no descriptor to wait on";
            return nullptr;
          }};
}

}  // namespace millrace::kv
