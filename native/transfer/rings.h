// The agent's rings: how requests reach the progress thread and events leave it without a lock. Both are bounded; full is a
// return value.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>

namespace millrace::kv {

// Many producers, many consumers, in order. Each cell carries the number of the turn it is ready for, so a producer and a
// consumer meet at one cell only.
template <class Item>
class SharedRing {
 public:
  explicit SharedRing(uint32_t least) : size_(std::bit_ceil(least < 2 ? 2u : least)), cells_(new Cell[size_]) {
    for (uint64_t i = 0; i < size_; i++) cells_[i].turn.store(i, std::memory_order_relaxed);
  }

  bool push(Item item) {
    uint64_t at = tail_.load(std::memory_order_relaxed);
    for (;;) {
      Cell& cell = cells_[at & (size_ - 1)];
      const uint64_t turn = cell.turn.load(std::memory_order_acquire);
      if (turn == at) {
        if (!tail_.compare_exchange_weak(at, at + 1, std::memory_order_relaxed)) continue;
        cell.item = std::move(item);
        cell.turn.store(at + 1, std::memory_order_release);
        return true;
      }
      if (turn < at) return false;
      at = tail_.load(std::memory_order_relaxed);
    }
  }

  bool pop(Item* item) {
    uint64_t at = head_.load(std::memory_order_relaxed);
    for (;;) {
      Cell& cell = cells_[at & (size_ - 1)];
      const uint64_t turn = cell.turn.load(std::memory_order_acquire);
      if (turn == at + 1) {
        if (!head_.compare_exchange_weak(at, at + 1, std::memory_order_relaxed)) continue;
        *item = std::move(cell.item);
        cell.turn.store(at + size_, std::memory_order_release);
        return true;
      }
      if (turn < at + 1) return false;
      at = head_.load(std::memory_order_relaxed);
    }
  }

  // Of what was published before; ordered after the caller's own sequentially consistent stores.
  bool empty() const {
    const uint64_t at = head_.load(std::memory_order_relaxed);
    return cells_[at & (size_ - 1)].turn.load(std::memory_order_seq_cst) != at + 1;
  }

 private:
  struct alignas(64) Cell {
    std::atomic<uint64_t> turn;
    Item item{};
  };
  const uint64_t size_;
  std::unique_ptr<Cell[]> cells_;
  alignas(64) std::atomic<uint64_t> head_{0};
  alignas(64) std::atomic<uint64_t> tail_{0};
};

// One producer, one consumer. The producer learns whether the consumer had taken everything before, which is when it may
// be asleep.
template <class Item>
class EventRing {
 public:
  explicit EventRing(uint32_t least) : size_(std::bit_ceil(least < 2 ? 2u : least)), items_(new Item[size_]) {}

  enum class Pushed { kFull, kFirst, kMore };

  Pushed push(Item& item) {
    const uint64_t tail = tail_.load(std::memory_order_relaxed);
    if (tail - head_.load(std::memory_order_acquire) == size_) return Pushed::kFull;
    items_[tail & (size_ - 1)] = std::move(item);
    // Both in one order: either the consumer sees this event before it sleeps, or we see that it took all others.
    tail_.store(tail + 1, std::memory_order_seq_cst);
    return head_.load(std::memory_order_seq_cst) == tail ? Pushed::kFirst : Pushed::kMore;
  }

  bool pop(Item* item) {
    const uint64_t head = head_.load(std::memory_order_relaxed);
    if (tail_.load(std::memory_order_seq_cst) == head) return false;
    *item = std::move(items_[head & (size_ - 1)]);
    head_.store(head + 1, std::memory_order_seq_cst);
    return true;
  }

 private:
  const uint64_t size_;
  std::unique_ptr<Item[]> items_;
  alignas(64) std::atomic<uint64_t> head_{0};
  alignas(64) std::atomic<uint64_t> tail_{0};
};

}  // namespace millrace::kv
