// A port: the rings by which a thread without an agent hands transfers to one and learns of their ends, in memory that both
// sides see (transfer/port-descriptor.ts has the picture of it). The port's thread writes there without a call; the agent's
// progress thread copies every word before it looks at it and believes none: whatever is written there gives completions with
// errors, never an access outside the port or a pool.
//
// Ends when either side closes it, the port's thread goes, or the agent closes: then nothing more is taken, what is in flight
// is cancelled, and once its bytes are quiet the state word says so and the memory is touched no more.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "agent.h"

namespace millrace::kv {

// What an agent is to its ports. Any thread.
class PortHost {
 public:
  virtual ~PortHost() = default;
  virtual void wake_thread() = 0;
  // Another mapping of one of its own pools. kNotFound, or kUnsupported where the memory is the caller's.
  virtual Status map_pool(uint32_t id, std::unique_ptr<Pool>* out, std::string* error) = 0;
};

struct PortShape {
  uint32_t entries = 0;
  uint32_t arena_words = 0;

  // Of the whole port; 0 for a shape that is not allowed.
  uint64_t words() const;
};

class Port {
 public:
  // Zeroed memory of `shape.words()` words, 64-byte aligned, which stays until the port `is_over`.
  Port(uint32_t* words, const PortShape& shape);

  const uint32_t* words() const { return words_; }
  const PortShape& shape() const { return shape_; }

  // ---- any thread
  // The port has a thread from here on. `wake` is called by the progress thread when that thread's event loop has asked for
  // it, and must only wake. kBusy for a second one, kClosed once the port is over.
  Status open(std::function<void()> wake);
  // That thread goes: `wake` is called no more after the return, and the port is closed.
  void leave();
  // Asks for its end, which comes soon: see `is_over`.
  void close();
  // Nothing of its memory is touched any more.
  bool is_over() const { return is_over_.load(std::memory_order_acquire); }
  // Wakes the progress thread, which has set the port's sleeping word.
  void kick();
  // Blocks while the word `waiting` is `expected`, at most so long.
  void wait(uint32_t expected, uint32_t timeout_ms);
  Status map_pool(uint32_t id, std::unique_ptr<Pool>* out, std::string* error);

  // ---- the progress thread
  struct Taken {
    uint32_t tag = 0;
    // Not kOk: the submission makes no sense, `error` says why, and it is to be completed so.
    Status status = Status::kOk;
    std::string error;
    TransferRequest request;
  };
  void attach(PortHost* host) { host_ = host; }
  // The next submission, if there is one and room for its completion. `now_ns` is what its deadline counts from.
  bool take(uint64_t now_ns, Taken* out);
  // What was taken is in flight under this number of the agent's.
  void begin(uint32_t tag, uint32_t slot);
  // It has ended. Of `event` the outcome, the bytes and the times are told.
  void complete(uint32_t tag, const Event& event, const std::string& error);
  // Transfers in flight; the agent's numbers of them, or of those alone that are to be cancelled.
  uint32_t in_flight() const { return in_flight_; }
  std::vector<uint32_t> slots_in_flight() const;
  std::vector<uint32_t> take_cancels();
  bool is_closing() const { return is_closing_.load(std::memory_order_seq_cst); }
  // What is in flight was told to stop.
  void set_stopped() { is_stopped_ = true; }
  // Something of the above is to be done.
  bool has_work() const;
  // Tells the port's thread that it must be kicked from now on, or need not be.
  void set_sleeping(bool is_sleeping);
  void end();

 private:
  static constexpr uint32_t kNoSlot = UINT32_MAX;
  struct Flight {
    uint32_t slot = kNoSlot;
    uint32_t turn = 0;
  };

  uint32_t load(size_t word, std::memory_order order = std::memory_order_relaxed) const;
  void store(size_t word, uint32_t value, std::memory_order order = std::memory_order_relaxed);
  void put(size_t word, uint64_t value);
  size_t entry_at(uint32_t turn) const;
  bool is_ready() const;
  bool is_cancelled(uint32_t tag, uint32_t turn) const;
  Status read(const uint32_t* entry, uint64_t now_ns, TransferRequest* out, std::string* error) const;
  void copy_lists(const uint32_t* entry, TransferRequest* out) const;
  void wake_user();

  uint32_t* const words_;
  const PortShape shape_;
  const size_t cancels_at_, submissions_at_, completions_at_, texts_at_, arena_at_;
  std::atomic<bool> is_closing_{false};
  std::atomic<bool> is_over_{false};
  std::mutex lock_;
  // Under the lock, and never changed back.
  PortHost* host_ = nullptr;
  std::function<void()> wake_;
  bool is_opened_ = false;
  // The progress thread's: submissions taken and completions written so far, mod 2^32; flights by tag.
  uint32_t taken_ = 0;
  uint32_t completed_ = 0;
  uint32_t cancels_seen_ = 0;
  uint32_t in_flight_ = 0;
  bool is_stopped_ = false;
  std::vector<Flight> flights_;
};

}  // namespace millrace::kv
