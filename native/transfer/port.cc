// The rings of a port: see port.h. Shared words are read and written as atomics only, each once, so that a thread that writes
// nonsense at any moment changes values, never where this side reads or writes.
#include "port.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>

#include "millrace/port_descriptor.h"
#include "millrace/transfer_descriptor.h"

namespace millrace::kv {
namespace {

constexpr uint32_t kWordBytes = 4;
constexpr uint64_t kNsPerMs = 1'000'000;
constexpr uint32_t kDeadlineMsMax = 3'600'000;

uint32_t transport_number(const char* name) {
  for (uint32_t i = 0; name != nullptr && i < std::size(kTransports); i++) {
    if (std::strcmp(kTransports[i], name) == 0) return i + 1;
  }
  return 0;
}

uint32_t bits(uint32_t flags, uint32_t shift, uint32_t count) { return flags >> shift & ((1u << count) - 1); }

Status refuse(std::string* error, const char* field, uint64_t value, const std::string& allowed) {
  *error = std::string(field) + " is " + std::to_string(value) + ", allowed is " + allowed;
  return Status::kInvalid;
}

}  // namespace

uint64_t PortShape::words() const {
  const bool is_allowed = entries >= kPortEntriesMin && entries <= kPortEntriesMax && std::has_single_bit(entries) &&
                          arena_words >= 1 && arena_words < 1u << 27;
  constexpr uint64_t kPerEntry = 1 + kPortEntryWords + kPortCompletionWords + kPortTextBytes / kWordBytes;
  return is_allowed ? kPortHeaderWords + entries * kPerEntry + arena_words : 0;
}

Port::Port(uint32_t* words, const PortShape& shape)
    : words_(words),
      shape_(shape),
      cancels_at_(kPortHeaderWords),
      submissions_at_(cancels_at_ + shape.entries),
      completions_at_(submissions_at_ + size_t{shape.entries} * kPortEntryWords),
      texts_at_(completions_at_ + size_t{shape.entries} * kPortCompletionWords),
      arena_at_(texts_at_ + size_t{shape.entries} * (kPortTextBytes / kWordBytes)),
      flights_(shape.entries) {
  assert(shape.words() != 0);
}

uint32_t Port::load(size_t word, std::memory_order order) const {
  return std::atomic_ref<uint32_t>(words_[word]).load(order);
}

void Port::store(size_t word, uint32_t value, std::memory_order order) {
  std::atomic_ref<uint32_t>(words_[word]).store(value, order);
}

void Port::put(size_t word, uint64_t value) {
  store(word, static_cast<uint32_t>(value));
  store(word + 1, static_cast<uint32_t>(value >> 32));
}

Status Port::open(std::function<void()> wake) {
  const std::lock_guard lock(lock_);
  if (is_over() || is_closing()) return Status::kClosed;
  if (is_opened_) return Status::kBusy;
  is_opened_ = true;
  wake_ = std::move(wake);
  return Status::kOk;
}

void Port::leave() {
  {
    const std::lock_guard lock(lock_);
    wake_ = nullptr;
  }
  close();
}

void Port::close() {
  is_closing_.store(true, std::memory_order_seq_cst);
  kick();
}

void Port::kick() {
  const std::lock_guard lock(lock_);
  if (host_ == nullptr) return;
  // Whoever submits next need not come here too; cleared before the thread is woken, which may set it again.
  store(kPortSleeping, 0, std::memory_order_seq_cst);
  host_->wake_thread();
}

void Port::wait(uint32_t expected, uint32_t timeout_ms) {
  const timespec timeout{static_cast<time_t>(timeout_ms / 1000), static_cast<long>(timeout_ms % 1000 * kNsPerMs)};
  syscall(SYS_futex, words_ + kPortWaiting, FUTEX_WAIT_PRIVATE, expected, &timeout, nullptr, 0);
}

Status Port::map_pool(uint32_t id, std::unique_ptr<Pool>* out, std::string* error) {
  const std::lock_guard lock(lock_);
  if (host_ != nullptr) return host_->map_pool(id, out, error);
  *error = "the port is closed";
  return Status::kClosed;
}

size_t Port::entry_at(uint32_t turn) const {
  return submissions_at_ + size_t{turn & (shape_.entries - 1)} * kPortEntryWords;
}

// A polled word that is ahead of what was completed, or behind by more than there is room for, means no room.
bool Port::is_ready() const {
  return taken_ - load(kPortPolled, std::memory_order_acquire) < shape_.entries &&
         load(entry_at(taken_) + kPortEntryTurn, std::memory_order_seq_cst) == taken_ + 1;
}

bool Port::is_cancelled(uint32_t tag, uint32_t turn) const {
  return load(cancels_at_ + tag, std::memory_order_seq_cst) == (turn << 1 | 1);
}

bool Port::has_work() const {
  if (is_closing()) return !is_stopped_ || in_flight_ == 0;
  return is_ready() || load(kPortCancels, std::memory_order_seq_cst) != cancels_seen_;
}

bool Port::take(uint64_t now_ns, Taken* out) {
  if (!is_ready()) return false;
  uint32_t entry[kPortEntryWords];
  const size_t at = entry_at(taken_);
  for (size_t i = 0; i < kPortEntryWords; i++) entry[i] = load(at + i);
  out->tag = entry[kPortEntryTag];
  out->request = {};
  out->error.clear();
  out->status = read(entry, now_ns, &out->request, &out->error);
  // The copy is made: entry and lists are the submitter's again.
  store(kPortTaken, ++taken_, std::memory_order_release);
  if (out->tag >= shape_.entries || flights_[out->tag].slot != kNoSlot) {
    out->status = refuse(&out->error, "tag", out->tag,
                         "below " + std::to_string(shape_.entries) + " and under no other transfer");
  } else if (out->status == Status::kOk && is_cancelled(out->tag, taken_)) {
    out->status = Status::kCancelled;
  }
  return true;
}

Status Port::read(const uint32_t* entry, uint64_t now_ns, TransferRequest* out, std::string* error) const {
  const uint32_t flags = entry[kPortEntryFlags];
  const uint32_t integrity = bits(flags, kPortFlagShiftIntegrity, 2);
  const uint32_t reader = bits(flags, kPortFlagShiftReader, 2);
  const uint32_t transport = bits(flags, kPortFlagShiftTransport, 8);
  const uint32_t blocks = entry[kPortEntryBlocks];
  const uint32_t notification = entry[kPortEntryNotificationBytes];
  if (integrity > 2) return refuse(error, "integrity", integrity, "0 to 2");
  if (reader > 2) return refuse(error, "reader", reader, "0 to 2");
  const auto to = [](uint32_t least, uint64_t most) { return std::to_string(least) + " to " + std::to_string(most); };
  if (transport > std::size(kTransports)) return refuse(error, "transport", transport, to(0, std::size(kTransports)));
  const uint32_t deadline_ms = entry[kPortEntryDeadlineMs];
  if (deadline_ms > kDeadlineMsMax) return refuse(error, "deadlineMs", deadline_ms, to(0, kDeadlineMsMax));
  if (blocks < 1 || blocks > kTransferBlocks) return refuse(error, "blocks", blocks, to(1, kTransferBlocks));
  if (notification > kTransferNotificationBytes)
    return refuse(error, "notificationBytes", notification, to(0, kTransferNotificationBytes));
  const uint32_t lists = bits(flags, kPortFlagShiftGenerations, 1) == 1 ? 3 : 2;
  const uint64_t words = uint64_t{blocks} * lists + (notification + kWordBytes - 1) / kWordBytes;
  if (words > shape_.arena_words || entry[kPortEntryLists] > shape_.arena_words - words)
    return refuse(error, "lists", entry[kPortEntryLists],
                  std::to_string(words) + " words inside the arena of " + std::to_string(shape_.arena_words));
  out->peer = entry[kPortEntryPeer];
  out->direction = static_cast<Direction>(bits(flags, kPortFlagShiftDirection, 1));
  out->local_pool = entry[kPortEntryLocalPool];
  out->remote_pool = entry[kPortEntryRemotePool];
  out->part = {entry[kPortEntryFirstLayer], entry[kPortEntryLayers], entry[kPortEntryFirstHead], entry[kPortEntryHeads]};
  out->integrity = static_cast<Integrity>(integrity);
  out->reader = static_cast<Reader>(reader);
  out->priority = static_cast<uint8_t>(bits(flags, kPortFlagShiftPriority, 8));
  out->lease = uint64_t{entry[kPortEntryLease + 1]} << 32 | entry[kPortEntryLease];
  if (deadline_ms != 0) out->deadline_ns = now_ns + deadline_ms * kNsPerMs;
  if (transport != 0) out->transport = kTransports[transport - 1];
  copy_lists(entry, out);
  return Status::kOk;
}

// What is checked later (blocks, generations) is checked in these copies.
void Port::copy_lists(const uint32_t* entry, TransferRequest* out) const {
  const uint32_t blocks = entry[kPortEntryBlocks];
  size_t at = arena_at_ + entry[kPortEntryLists];
  const auto copy = [&](std::vector<uint32_t>& list) {
    list.resize(blocks);
    for (uint32_t& word : list) word = load(at++);
  };
  copy(out->local_blocks);
  copy(out->remote_blocks);
  if (bits(entry[kPortEntryFlags], kPortFlagShiftGenerations, 1) == 1) copy(out->remote_generations);
  out->notification.resize(entry[kPortEntryNotificationBytes]);
  for (size_t i = 0; i < out->notification.size(); i += kWordBytes) {
    const uint32_t word = load(at++);
    std::memcpy(out->notification.data() + i, &word, std::min<size_t>(kWordBytes, out->notification.size() - i));
  }
}

void Port::begin(uint32_t tag, uint32_t slot) {
  flights_[tag] = {slot, taken_};
  in_flight_++;
}

void Port::complete(uint32_t tag, const Event& event, const std::string& error) {
  if (event.id != 0) {
    flights_[tag].slot = kNoSlot;
    in_flight_--;
  }
  const uint32_t place = completed_ & (shape_.entries - 1);
  const size_t at = completions_at_ + size_t{place} * kPortCompletionWords;
  const size_t text_at = texts_at_ + size_t{place} * (kPortTextBytes / kWordBytes);
  const size_t text_bytes = std::min<size_t>(error.size(), kPortTextBytes);
  for (size_t i = 0; i < text_bytes; i += kWordBytes) {
    uint32_t word = 0;
    std::memcpy(&word, error.data() + i, std::min<size_t>(kWordBytes, text_bytes - i));
    store(text_at + i / kWordBytes, word);
  }
  store(at + kPortCompletionTag, tag);
  store(at + kPortCompletionStatus, static_cast<uint32_t>(event.status));
  store(at + kPortCompletionTransport, transport_number(event.transport));
  put(at + kPortCompletionBytes, event.bytes);
  put(at + kPortCompletionPostedNs, event.posted_ns);
  put(at + kPortCompletionBegunNs, event.begun_ns);
  put(at + kPortCompletionDoneNs, event.done_ns);
  store(at + kPortCompletionTextBytes, static_cast<uint32_t>(text_bytes));
  // Both in one order with the thread's own store of `waiting` and its look at the turn.
  store(at + kPortCompletionTurn, ++completed_, std::memory_order_seq_cst);
  if (load(kPortWaiting, std::memory_order_seq_cst) != 0) wake_user();
}

void Port::wake_user() {
  const uint32_t waiting = std::atomic_ref<uint32_t>(words_[kPortWaiting]).exchange(0, std::memory_order_seq_cst);
  if ((waiting & kPortWaitingBlocked) != 0)
    syscall(SYS_futex, words_ + kPortWaiting, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  if ((waiting & kPortWaitingLoop) == 0) return;
  const std::lock_guard lock(lock_);
  if (wake_) wake_();
}

std::vector<uint32_t> Port::slots_in_flight() const {
  std::vector<uint32_t> slots;
  for (const Flight& flight : flights_)
    if (flight.slot != kNoSlot) slots.push_back(flight.slot);
  return slots;
}

std::vector<uint32_t> Port::take_cancels() {
  std::vector<uint32_t> slots;
  const uint32_t cancels = load(kPortCancels, std::memory_order_seq_cst);
  if (cancels == cancels_seen_) return slots;
  cancels_seen_ = cancels;
  for (uint32_t tag = 0; tag < shape_.entries; tag++) {
    const Flight& flight = flights_[tag];
    if (flight.slot != kNoSlot && is_cancelled(tag, flight.turn)) slots.push_back(flight.slot);
  }
  return slots;
}

void Port::set_sleeping(bool is_sleeping) { store(kPortSleeping, is_sleeping ? 1 : 0, std::memory_order_seq_cst); }

void Port::end() {
  {
    const std::lock_guard lock(lock_);
    host_ = nullptr;
  }
  store(kPortState, kPortStateEnded, std::memory_order_seq_cst);
  wake_user();
  is_over_.store(true, std::memory_order_release);
}

}  // namespace millrace::kv
