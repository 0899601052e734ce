// The block table against a model, one thread; and with threads that work on blocks while the owner reuses them: nobody's
// bytes may change under an operation that was let in.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <new>
#include <thread>
#include <vector>

#include "block_table.h"
#include "check.h"

namespace millrace::kv::test {
namespace {

struct Memory {
  explicit Memory(uint64_t size) : bytes(size), at(::operator new(size, std::align_val_t{64})) { std::memset(at, 0, size); }
  ~Memory() { ::operator delete(at, std::align_val_t{64}); }
  Memory(const Memory&) = delete;
  uint64_t bytes;
  void* at;
};

struct ModelBlock {
  BlockState state = BlockState::kFree;
  uint32_t generation = 0;
  uint32_t inflight = 0;
  uint32_t pins = 0;
  uint64_t until = 0;
  uint64_t hash = 0;
  uint32_t parent = kNoBlock;
};

class Model {
 public:
  Model(std::mt19937& random, uint32_t blocks)
      : random_(random), memory_(BlockTable::bytes_for(blocks)), model_(blocks) {
    std::string error;
    check(BlockTable::create(memory_.at, memory_.bytes, blocks, &table_, &error) == Status::kOk, error);
    check(BlockTable::create(memory_.at, memory_.bytes - 1, blocks, &refused_, &error) == Status::kInvalid, "too small");
  }

  void step() {
    switch (random_() % 12) {
      case 0: case 1: return reserve();
      case 2: case 3: return fill_and_commit();
      case 4: return pin();
      case 5: return unpin();
      case 6: return release();
      case 7: case 8: return enter();
      case 9: return leave();
      case 10: return match();
      default: return expire();
    }
  }

  void finish() const { check(table_->consistent(), "lists, counts and links agree"); }

 private:
  uint32_t any() { return static_cast<uint32_t>(random_() % model_.size()); }

  uint32_t count(BlockState state) const {
    uint32_t n = 0;
    for (const ModelBlock& block : model_) n += block.state == state ? 1 : 0;
    return n;
  }

  void drop(uint32_t block) {
    for (ModelBlock& other : model_)
      if (other.state == BlockState::kReady && other.parent == block) other.parent = kNoBlock;
    ModelBlock& it = model_[block];
    it.state = it.inflight != 0 ? BlockState::kQuarantine : BlockState::kFree;
    it.parent = kNoBlock;
  }

  void reserve() {
    const uint32_t wanted = 1 + random_() % 4;
    std::vector<uint32_t> blocks(wanted), generations(wanted);
    const Status status = table_->reserve(wanted, 7, blocks.data(), generations.data());
    // Who went is what the table says; that it was allowed is checked here, leaves before their parents.
    bool more = true;
    while (more) {
      more = false;
      for (uint32_t i = 0; i < model_.size(); i++) {
        ModelBlock& it = model_[i];
        if (it.state == BlockState::kQuarantine && it.inflight == 0) it.state = BlockState::kFree;
        const bool taken = std::find(blocks.begin(), blocks.end(), i) != blocks.end() && status == Status::kOk;
        const bool gone = it.state == BlockState::kReady && (taken || table_->state(i) != BlockState::kReady);
        if (!gone) continue;
        const bool has_child = std::any_of(model_.begin(), model_.end(), [&](const ModelBlock& other) {
          return other.state == BlockState::kReady && other.parent == i;
        });
        if (has_child) continue;
        check(it.pins == 0 && it.until == 0 && it.inflight == 0, "only what nobody needs is evicted");
        drop(i);
        more = true;
      }
    }
    for (uint32_t i = 0; i < model_.size(); i++)
      check(model_[i].state != BlockState::kReady || table_->state(i) == BlockState::kReady ||
                std::find(blocks.begin(), blocks.end(), i) == blocks.end(), "leaves go before parents");
    if (status == Status::kFull) {
      check(count(BlockState::kFree) < wanted, "full only when there are too few");
      for (uint32_t i = 0; i < model_.size(); i++) {
        const ModelBlock& it = model_[i];
        const bool has_child = std::any_of(model_.begin(), model_.end(), [&](const ModelBlock& other) {
          return other.state == BlockState::kReady && other.parent == i;
        });
        check(it.state != BlockState::kReady || it.pins != 0 || it.until != 0 || it.inflight != 0 || has_child,
              "and nothing could be evicted");
      }
      return;
    }
    for (uint32_t i = 0; i < wanted; i++) {
      ModelBlock& it = model_[blocks[i]];
      check(it.state == BlockState::kFree && it.inflight == 0, "a block in use is never handed out");
      it = {};
      it.state = BlockState::kReserved;
      it.generation = generations[i];
      check(table_->generation(blocks[i]) == generations[i], "the generation moved on");
    }
  }

  void fill_and_commit() {
    const uint32_t block = any();
    ModelBlock& it = model_[block];
    const Status filled = table_->fill({&block, 1});
    check((filled == Status::kOk) == (it.state == BlockState::kReserved), "only reserved blocks are filled");
    if (filled != Status::kOk) return;
    it.state = BlockState::kFilling;
    const uint32_t parent = random_() % 2 == 0 ? kNoBlock : any();
    const uint64_t hash = random_() % 64;
    uint32_t existing = kNoBlock;
    const Status status = table_->commit(block, {hash, 1, parent}, &existing);
    if (parent != kNoBlock && model_[parent].state != BlockState::kReady) {
      check(status == Status::kInvalid, "a parent must be ready");
      return;
    }
    for (uint32_t i = 0; i < model_.size(); i++) {
      if (model_[i].state != BlockState::kReady || model_[i].hash != hash) continue;
      check(status == Status::kBusy && existing == i, "what is there already is named");
      return;
    }
    check(status == Status::kOk, "committed");
    it.state = BlockState::kReady;
    it.hash = hash;
    it.parent = parent;
  }

  void pin() {
    const uint32_t block = any();
    ModelBlock& it = model_[block];
    const uint64_t until = random_() % 2 == 0 ? 0 : now_ + 1 + random_() % 20;
    const uint32_t generation = it.generation - (random_() % 8 == 0 ? 1 : 0);
    const Status status = table_->pin(block, generation, until);
    check((status == Status::kOk) == (it.state == BlockState::kReady && generation == it.generation), "pin");
    if (status != Status::kOk) return;
    if (until == 0) it.pins++;
    it.until = std::max(it.until, until);
  }

  void unpin() {
    const uint32_t block = any();
    ModelBlock& it = model_[block];
    const Status status = table_->unpin(block, it.generation);
    check((status == Status::kOk) == (it.state == BlockState::kReady && it.pins > 0), "unpin");
    if (status == Status::kOk) it.pins--;
  }

  void release() {
    const uint32_t block = any();
    ModelBlock& it = model_[block];
    const Status status = table_->release(block, it.generation);
    const bool held = it.state == BlockState::kReady && (it.pins != 0 || it.until != 0);
    const bool live = it.state != BlockState::kFree && it.state != BlockState::kQuarantine;
    check(status == (held ? Status::kBusy : live ? Status::kOk : Status::kStale), "release");
    if (status == Status::kOk) drop(block);
  }

  void enter() {
    const uint32_t block = any();
    ModelBlock& it = model_[block];
    const uint32_t generation = it.generation - (random_() % 8 == 0 ? 1 : 0);
    const Status status = table_->enter(block, generation);
    const bool live = it.state == BlockState::kReserved || it.state == BlockState::kFilling || it.state == BlockState::kReady;
    check((status == Status::kOk) == (live && generation == it.generation), "enter");
    if (status == Status::kOk) it.inflight++;
  }

  void leave() {
    const uint32_t block = any();
    if (model_[block].inflight == 0) return;
    model_[block].inflight--;
    table_->leave(block);
  }

  void match() {
    uint64_t hashes[4];
    uint32_t blocks[4];
    for (uint64_t& hash : hashes) hash = random_() % 64;
    const uint32_t depth = table_->match(hashes, blocks);
    for (uint32_t i = 0; i < depth; i++)
      check(model_[blocks[i]].state == BlockState::kReady && model_[blocks[i]].hash == hashes[i], "matched blocks");
    for (const ModelBlock& it : model_)
      check(depth == 4 || it.state != BlockState::kReady || it.hash != hashes[depth], "the longest prefix");
  }

  void expire() {
    now_ += 1 + random_() % 10;
    table_->expire(now_);
    for (ModelBlock& it : model_)
      if (it.until != 0 && it.until <= now_) it.until = 0;
    const BlockStats stats = table_->stats();
    for (ModelBlock& it : model_)
      if (it.state == BlockState::kQuarantine && it.inflight == 0) it.state = BlockState::kFree;
    check(stats.free == count(BlockState::kFree) && stats.ready == count(BlockState::kReady) &&
              stats.reserved == count(BlockState::kReserved) && stats.filling == count(BlockState::kFilling) &&
              stats.quarantine == count(BlockState::kQuarantine), "stats");
    check(table_->consistent(), "lists, counts and links agree");
  }

  std::mt19937& random_;
  Memory memory_;
  std::vector<ModelBlock> model_;
  std::unique_ptr<BlockTable> table_;
  std::unique_ptr<BlockTable> refused_;
  uint64_t now_ = 1;
};

// Each block's memory is one word, into which its owner writes the generation when it hands the block out. Workers that
// were let in must not see a later one until they leave.
void threads(std::mt19937& random, uint32_t rounds) {
  constexpr uint32_t kBlocks = 8;
  constexpr uint32_t kWorkers = 2;
  Memory memory(BlockTable::bytes_for(kBlocks));
  std::unique_ptr<BlockTable> table;
  std::string error;
  check(BlockTable::create(memory.at, memory.bytes, kBlocks, &table, &error) == Status::kOk, error);
  std::atomic<uint32_t> bytes[kBlocks] = {};
  std::atomic<bool> over{false};
  std::atomic<uint64_t> entered{0}, stale{0};
  std::vector<std::thread> workers;
  for (uint32_t w = 0; w < kWorkers; w++) {
    workers.emplace_back([&, seed = random()] {
      std::mt19937 own(static_cast<uint32_t>(seed));
      while (!over.load()) {
        const uint32_t block = own() % kBlocks;
        const uint32_t generation = table->generation(block);
        if (table->enter(block, generation) != Status::kOk) {
          stale++;
          continue;
        }
        for (uint32_t spin = own() % 50; spin > 0; spin--) check(bytes[block].load() <= generation, "the block is ours");
        check(table->generation(block) == generation, "and stays so");
        table->leave(block);
        entered++;
      }
    });
  }
  uint64_t quarantined = 0;
  // Until enough has happened, however the threads are scheduled.
  for (uint32_t round = 0; round < rounds || entered < rounds / 10 || stale == 0 || quarantined == 0; round++) {
    uint32_t block, generation;
    if (table->reserve(1, 0, &block, &generation) != Status::kOk) continue;
    bytes[block].store(generation);
    check(table->release(block, generation) == Status::kOk, "released");
    if (table->state(block) == BlockState::kQuarantine) quarantined++;
  }
  over = true;
  for (std::thread& worker : workers) worker.join();
  table->settle();
  check(table->stats().free == kBlocks && table->consistent(), "all are free in the end");
}

}  // namespace

void table_random(std::mt19937& random, uint32_t steps) {
  for (uint32_t done = 0; done < steps;) {
    Model model(random, 1 + random() % 24);
    for (uint32_t i = 0; i < 2000 && done < steps; i++, done++) model.step();
    model.finish();
  }
  threads(random, steps / 10);
}

}  // namespace millrace::kv::test
