// Where the agents of one process find each other. See memory_endpoint.h.
#include "memory_endpoint.h"

#include <sys/eventfd.h>
#include <unistd.h>

namespace millrace::kv {
namespace {

struct Registry {
  std::mutex lock;
  std::map<MemoryKey, std::shared_ptr<MemoryEndpoint>> endpoints;
};

// Never destroyed: agents may be closed by destructors that run after this one's would.
Registry& registry() {
  static Registry* const it = new Registry;
  return *it;
}

}  // namespace

MemoryEndpoint::MemoryEndpoint(const MemoryKey& name) : key(name), descriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

MemoryEndpoint::~MemoryEndpoint() {
  if (descriptor >= 0) ::close(descriptor);
}

std::shared_ptr<MemoryEndpoint> MemoryEndpoint::find(const MemoryKey& key) {
  const std::lock_guard registered(registry().lock);
  const auto found = registry().endpoints.find(key);
  return found == registry().endpoints.end() ? nullptr : found->second;
}

void MemoryEndpoint::open(const std::shared_ptr<MemoryEndpoint>& endpoint) {
  const std::lock_guard registered(registry().lock);
  registry().endpoints[endpoint->key] = endpoint;
}

void MemoryEndpoint::close() {
  {
    const std::lock_guard mine(lock);
    is_open = false;
    serving.clear();
    pools.clear();
    inbox.clear();
  }
  std::vector<std::shared_ptr<MemoryEndpoint>> others;
  {
    const std::lock_guard registered(registry().lock);
    registry().endpoints.erase(key);
    for (const auto& [name, endpoint] : registry().endpoints) others.push_back(endpoint);
  }
  for (const auto& other : others) other->post({key, true, {}});
}

Status MemoryEndpoint::post(MemoryMessage message) {
  {
    const std::lock_guard theirs(lock);
    if (!is_open) return Status::kPeerLost;
    if (known.count(message.sender) == 0) return Status::kNotAllowed;
    // Each peer cuts once, so that these are bounded too.
    if (!message.is_cut && inbox.size() >= kInboxMax) return Status::kFull;
    inbox.push_back(std::move(message));
  }
  kick();
  return Status::kOk;
}

void MemoryEndpoint::kick() {
  if (is_kicked_.exchange(true, std::memory_order_seq_cst)) return;
  const uint64_t one = 1;
  // It can only fail when the count is at its end, and then the descriptor is readable already.
  [[maybe_unused]] const ssize_t written = write(descriptor, &one, sizeof(one));
}

void MemoryEndpoint::calm() {
  uint64_t wakes;
  if (!is_kicked_.load(std::memory_order_relaxed)) return;
  // Whoever kicks may not have written yet; then the next call finds it.
  if (read(descriptor, &wakes, sizeof(wakes)) > 0) is_kicked_.exchange(false, std::memory_order_seq_cst);
}

}  // namespace millrace::kv
