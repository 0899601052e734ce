// The agent of one JS thread: see transfer_agent.h.
#include "transfer_agent.h"

#include <cassert>
#include <cstring>
#include <utility>

#include "millrace/transfer_descriptor.h"

namespace millrace {
namespace {

void put(uint32_t* words, uint64_t value) {
  words[0] = static_cast<uint32_t>(value);
  words[1] = static_cast<uint32_t>(value >> 32);
}

uint32_t transport_number(const char* name) {
  for (uint32_t i = 0; name != nullptr && i < std::size(kTransports); i++) {
    if (std::strcmp(kTransports[i], name) == 0) return i + 1;
  }
  return 0;
}

}  // namespace

TransferAgent::TransferAgent(Napi::Env env, std::span<uint32_t> events, std::span<uint8_t> notifications)
    : env_(env), events_(events), notifications_(notifications) {}

kv::Status TransferAgent::open(Napi::Env env, kv::AgentOptions options, napi_value wake, std::span<uint32_t> events,
                               std::span<uint8_t> notifications, std::unique_ptr<TransferAgent>* out,
                               std::string* error) {
  std::unique_ptr<TransferAgent> self(new TransferAgent(env, events, notifications));
  TransferAgent* raw = self.get();
  const napi_value name = Napi::String::New(env, "millrace transfer");
  const napi_status made = napi_create_threadsafe_function(env, wake, nullptr, name, 0, 1, nullptr, nullptr, raw,
                                                           wake_script, &raw->wake_);
  if (made != napi_ok) {
    *error = "the runtime gave no thread-safe function";
    return kv::Status::kSystem;
  }
  napi_unref_threadsafe_function(env, raw->wake_);
  // After the thread-safe function has registered its own hook: hooks run backwards, so ours runs while it still lives.
  napi_add_env_cleanup_hook(env, end, raw);
  options.wake = [raw] { raw->wake(); };
  const kv::Status status = kv::Agent::create(options, &raw->agent_, error);
  if (status == kv::Status::kOk) *out = std::move(self);
  return status;
}

TransferAgent::~TransferAgent() {
  if (wake_ == nullptr) return;
  // Closed by the script, which may still hold buffers over pools that are about to go.
  for (auto& [id, memory] : memory_) {
    if (memory.is_external) napi_detach_arraybuffer(env_, memory.array.Value());
  }
  napi_remove_env_cleanup_hook(env_, end, this);
  end(this);
}

void TransferAgent::end(void* data) {
  auto* self = static_cast<TransferAgent*>(data);
  self->agent_.reset();
  napi_release_threadsafe_function(std::exchange(self->wake_, nullptr), napi_tsfn_abort);
}

void TransferAgent::wake() {
  if (!is_pending_.exchange(true)) napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

void TransferAgent::wake_script(napi_env env, napi_value wake, void* context, void*) {
  // Both are null when the environment ends with a call still queued.
  if (env == nullptr || wake == nullptr) return;
  static_cast<TransferAgent*>(context)->is_pending_.store(false);
  napi_value receiver;
  napi_get_undefined(env, &receiver);
  // An exception of the script stays pending, and the runtime raises it as uncaught.
  napi_call_function(env, receiver, wake, 0, nullptr, nullptr);
}

int64_t TransferAgent::add_pool(std::unique_ptr<kv::Pool> pool, const kv::Layout& layout, bool has_table,
                                napi_value array, std::string* error) {
  Memory memory;
  pool->set_layout(layout);
  if (has_table) {
    const kv::Status status = pool->create_table(layout.blocks(), error);
    if (status != kv::Status::kOk) return static_cast<int64_t>(status);
  }
  if (array != nullptr) memory.array = Napi::Persistent(Napi::Object(env_, array));
  uint32_t id = 0;
  const kv::Status status = agent_->add_pool(std::move(pool), &id, error);
  if (status != kv::Status::kOk) return static_cast<int64_t>(status);
  memory_.insert_or_assign(id, std::move(memory));
  return id;
}

kv::Status TransferAgent::close_pool(uint32_t id) {
  const kv::Status status = agent_->remove_pool(id);
  if (status != kv::Status::kOk) return status;
  const auto found = memory_.find(id);
  if (found == memory_.end()) return status;
  if (found->second.is_external) napi_detach_arraybuffer(env_, found->second.array.Value());
  memory_.erase(found);
  return status;
}

napi_value TransferAgent::buffer(uint32_t id, std::string* error) {
  kv::Pool* pool = agent_->pool(id);
  const auto found = memory_.find(id);
  if (pool == nullptr || found == memory_.end()) {
    *error = "pool " + std::to_string(id) + " is not open";
    return nullptr;
  }
  if (pool->kind() != kv::MemoryKind::kHost) {
    *error = "pool " + std::to_string(id) + " is in the memory of a device";
    return nullptr;
  }
  Memory& memory = found->second;
  if (memory.is_external) return memory.array.Value();
  napi_value buffer = nullptr;
  // No finalizer: the pool owns the memory, and closing it detaches the buffer.
  if (!memory.array.IsEmpty() ||
      napi_create_external_arraybuffer(env_, pool->address(), pool->bytes(), nullptr, nullptr, &buffer) != napi_ok) {
    *error = memory.array.IsEmpty() ? "this runtime makes no external ArrayBuffer of " +
                                          std::to_string(pool->bytes()) + " bytes"
                                    : "pool " + std::to_string(id) + " is over memory of the caller";
    return nullptr;
  }
  memory.array = Napi::Persistent(Napi::Object(env_, buffer));
  memory.is_external = true;
  return buffer;
}

int64_t TransferAgent::submit(kv::TransferRequest request, std::string* error) {
  const int64_t id = agent_->submit(std::move(request), error);
  if (id > 0 && in_flight_++ == 0) napi_ref_threadsafe_function(env_, wake_);
  return id;
}

void TransferAgent::write(const kv::Event& event, uint32_t* words, size_t notification_at) {
  words[kTransferEventKind] = static_cast<uint32_t>(event.kind);
  words[kTransferEventStatus] = static_cast<uint32_t>(event.status);
  put(words + kTransferEventId, event.id);
  words[kTransferEventPeer] = event.peer;
  words[kTransferEventNotificationAt] = static_cast<uint32_t>(notification_at);
  put(words + kTransferEventBytes, event.bytes);
  put(words + kTransferEventPostedNs, event.posted_ns);
  put(words + kTransferEventBegunNs, event.begun_ns);
  put(words + kTransferEventDoneNs, event.done_ns);
  words[kTransferEventTransport] = transport_number(event.transport);
  words[kTransferEventNotificationBytes] = static_cast<uint32_t>(event.notification.size());
  if (!event.notification.empty()) {
    std::memcpy(notifications_.data() + notification_at, event.notification.data(), event.notification.size());
  }
}

uint32_t TransferAgent::poll() {
  ports_.sweep();
  const auto room = static_cast<uint32_t>(events_.size() / kTransferEventWords);
  if (next_ == taken_.size()) {
    taken_.clear();
    next_ = 0;
    agent_->poll(room, &taken_);
  }
  uint32_t written = 0;
  size_t used = 0;
  for (; next_ < taken_.size() && written < room; next_++, written++) {
    const kv::Event& event = taken_[next_];
    if (used + event.notification.size() > notifications_.size()) break;
    write(event, events_.data() + size_t{written} * kTransferEventWords, used);
    used += event.notification.size();
    if (event.kind != kv::EventKind::kCompletion) continue;
    assert(in_flight_ > 0);
    if (--in_flight_ == 0) napi_unref_threadsafe_function(env_, wake_);
  }
  return written;
}

}  // namespace millrace
