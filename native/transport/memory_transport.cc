#include "memory_transport.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <random>

#include "../transfer/crc32c.h"
#include "../transfer/pool.h"
#include "memory_endpoint.h"

namespace millrace::kv {
namespace {

// Copying a piece costs at least as much as this many bytes do.
constexpr uint64_t kPieceBytesLeast = 64;
constexpr uint32_t kSlicesAtOnce = 4;
constexpr uint32_t kDelayStepsMax = 64;

const TransportInfo kInfo = {"memory", true, "agents of one process only", 1u << static_cast<int>(MemoryKind::kHost), true, true};

enum class Stage { kCopy, kVerify, kNotify };

struct Work {
  Operation operation;
  uint32_t peer = 0;
  std::shared_ptr<MemoryEndpoint> remote;
  uint64_t served = 0;
  std::vector<Run> runs;
  uint64_t bytes = 0, copied = 0;
  // The next byte: of which run, piece and where in it.
  size_t run = 0;
  uint32_t piece = 0;
  uint64_t offset = 0;
  Stage stage = Stage::kCopy;
  uint32_t verified = 0;
  bool is_cancelled = false;
  // Faults.
  uint32_t delay_steps = 0;
  bool is_dropped = false, is_corrupt = false;
  uint64_t fail_after = UINT64_MAX, cut_after = UINT64_MAX;
};

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
  using Works = std::list<Work>;
  enum class Step { kIdle, kWorked, kEnded };

  Status serve(Work& work);
  void draw_faults(Work& work);
  bool take_inbox();
  Step step(Works::iterator work, std::vector<Completion>* completions);
  bool copy_slice(Work& work);
  void corrupt(Work& work);
  bool verify_block(Work& work);
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

void count(const std::shared_ptr<MemoryFaultCounts>& counts, std::atomic<uint64_t> MemoryFaultCounts::* which) {
  if (counts != nullptr) ((*counts).*which).fetch_add(1, std::memory_order_relaxed);
}

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
  for (Work& work : works_)
    if (work.peer == peer) work.is_cancelled = true;
  const MemoryKey key = found->second->key;
  numbers_.erase(key);
  peers_.erase(found);
  const std::lock_guard mine(own_->lock);
  own_->known.erase(key);
}

void MemoryTransport::draw_faults(Work& work) {
  const MemoryFaults& faults = options_.faults;
  const auto meets = [&](uint32_t chance) { return chance != 0 && random_() % 10'000 < chance; };
  if (meets(faults.delay)) {
    work.delay_steps = 1 + static_cast<uint32_t>(random_() % kDelayStepsMax);
    count(options_.counts, &MemoryFaultCounts::delayed);
  }
  if (meets(faults.reorder)) {
    std::shuffle(work.runs.begin(), work.runs.end(), random_);
    count(options_.counts, &MemoryFaultCounts::reordered);
  }
  work.is_dropped = meets(faults.drop);
  if (work.is_dropped) count(options_.counts, &MemoryFaultCounts::dropped);
  // These are counted when they happen: a cancelled operation may not come so far.
  work.is_corrupt = meets(faults.corrupt);
  if (meets(faults.partial)) work.fail_after = random_() % work.bytes;
  if (meets(faults.cut)) work.cut_after = random_() % work.bytes;
}

// Counts the operation in at the peer, and its pool as in use. All or nothing.
Status MemoryTransport::serve(Work& work) {
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
  Work work;
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
  draw_faults(work);
  {
    const std::lock_guard mine(own_->lock);
    own_->pools[operation.local->id].uses++;
  }
  works_.push_back(std::move(work));
  return Status::kOk;
}

void MemoryTransport::cancel(uint64_t id) {
  for (Work& work : works_)
    if (work.operation.id == id) work.is_cancelled = true;
}

Status MemoryTransport::notify(uint32_t peer, std::span<const uint8_t> bytes) {
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return Status::kPeerLost;
  return found->second->post({own_->key, false, {bytes.begin(), bytes.end()}});
}

bool MemoryTransport::take_inbox() {
  std::deque<MemoryMessage> taken;
  {
    const std::lock_guard mine(own_->lock);
    if (own_->inbox.empty()) return false;
    taken.swap(own_->inbox);
  }
  uint64_t wakes;
  [[maybe_unused]] const ssize_t drained = read(own_->descriptor, &wakes, sizeof(wakes));
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

// With the lock of the peer, and the peer open.
bool MemoryTransport::copy_slice(Work& work) {
  const bool reads = work.operation.direction == Direction::kRead;
  Pool* const remote = work.remote->pools.find(work.operation.remote_pool)->second.pool;
  const uint8_t* const source = (reads ? remote : work.operation.local)->address();
  uint8_t* const target = (reads ? work.operation.local : remote)->address();
  uint64_t budget = options_.slice_bytes;
  while (budget > 0 && work.run < work.runs.size()) {
    const Run& run = work.runs[work.run];
    const uint64_t most = std::min({budget, work.fail_after - work.copied, work.cut_after - work.copied});
    const uint64_t length = std::min(run.length - work.offset, most);
    if (length == 0) return false;
    std::memcpy(target + run.target + work.piece * run.target_stride + work.offset,
                source + run.source + work.piece * run.source_stride + work.offset, length);
    work.copied += length;
    budget -= std::min(budget, std::max(length, kPieceBytesLeast));
    work.offset += length;
    if (work.offset < run.length) continue;
    work.offset = 0;
    if (++work.piece < run.count) continue;
    work.piece = 0;
    work.run++;
  }
  return work.run == work.runs.size();
}

// With the lock of the peer. Changes one byte that was copied.
void MemoryTransport::corrupt(Work& work) {
  const bool reads = work.operation.direction == Direction::kRead;
  Pool* const remote = work.remote->pools.find(work.operation.remote_pool)->second.pool;
  const Run& run = work.runs[random_() % work.runs.size()];
  const uint64_t at = run.target + random_() % run.count * run.target_stride + random_() % run.length;
  (reads ? work.operation.local : remote)->address()[at] ^= 0x40;
  count(options_.counts, &MemoryFaultCounts::corrupted);
  if (work.operation.integrity == Integrity::kFull) count(options_.counts, &MemoryFaultCounts::corrupted_checked);
}

// With the lock of the peer. Whether the next block that is to be checked arrived as it was sent.
bool MemoryTransport::verify_block(Work& work) {
  const Operation& operation = work.operation;
  const bool reads = operation.direction == Direction::kRead;
  Pool* const remote = work.remote->pools.find(operation.remote_pool)->second.pool;
  const uint32_t source_block = (reads ? operation.remote_blocks : operation.local_blocks)[work.verified];
  const uint32_t target_block = (reads ? operation.local_blocks : operation.remote_blocks)[work.verified];
  const uint8_t* const source = (reads ? remote : operation.local)->address();
  const uint8_t* const target = (reads ? operation.local : remote)->address();
  std::vector<Run> runs;
  std::string error;
  operation.transform->lower(&source_block, &target_block, 1, &runs, &error);
  uint32_t sent = 0;
  uint32_t arrived = 0;
  for (const Run& run : runs) {
    for (uint32_t i = 0; i < run.count; i++) {
      sent = crc32c(sent, source + run.source + i * run.source_stride, run.length);
      arrived = crc32c(arrived, target + run.target + i * run.target_stride, run.length);
    }
  }
  work.verified += operation.integrity == Integrity::kSample ? kSampleBlocks : 1;
  return sent == arrived;
}

MemoryTransport::Step MemoryTransport::step(Works::iterator it, std::vector<Completion>* completions) {
  Work& work = *it;
  const auto ended = [&](Status status) {
    end(it, status, completions);
    return Step::kEnded;
  };
  if (work.is_cancelled) return ended(Status::kCancelled);
  if (work.is_dropped) return Step::kIdle;
  if (work.delay_steps > 0) {
    work.delay_steps--;
    return Step::kWorked;
  }
  std::unique_lock theirs(work.remote->lock);
  if (!work.remote->is_open) {
    theirs.unlock();
    lost_.push_back({work.remote->key, "the peer closed"});
    return Step::kIdle;
  }
  if (work.stage == Stage::kCopy) {
    if (copy_slice(work)) {
      if (work.is_corrupt) corrupt(work);
      work.stage = work.operation.integrity == Integrity::kOff ? Stage::kNotify : Stage::kVerify;
      if (work.operation.integrity == Integrity::kSample)
        work.verified = static_cast<uint32_t>(
            work.operation.id % std::min<uint64_t>(kSampleBlocks, work.operation.local_blocks.size()));
    } else if (work.copied >= work.fail_after || work.copied >= work.cut_after) {
      theirs.unlock();
      const bool is_cut = work.copied >= work.cut_after;
      count(options_.counts, is_cut ? &MemoryFaultCounts::cut : &MemoryFaultCounts::partial);
      if (!is_cut) return ended(Status::kSystem);
      work.remote->post({own_->key, true, {}});
      lost_.push_back({work.remote->key, "cut off"});
      return Step::kIdle;
    }
    return Step::kWorked;
  }
  if (work.stage == Stage::kVerify && work.verified < work.operation.local_blocks.size()) {
    if (verify_block(work)) return Step::kWorked;
    if (work.operation.integrity == Integrity::kFull && work.is_corrupt)
      count(options_.counts, &MemoryFaultCounts::corrupted_found);
    theirs.unlock();
    return ended(Status::kCorrupt);
  }
  theirs.unlock();
  work.stage = Stage::kNotify;
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
