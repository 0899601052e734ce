// Ports in JS threads: see transfer_port.h.
#include "transfer_port.h"

#include <map>
#include <mutex>
#include <utility>

namespace millrace {
namespace {

std::mutex names_lock;
uint32_t names_given = 0;

std::map<uint32_t, std::weak_ptr<kv::Port>>& names() {
  // Never destroyed: threads may end after the statics of the process do.
  static auto* const names = new std::map<uint32_t, std::weak_ptr<kv::Port>>;
  return *names;
}

}  // namespace

uint32_t name_port(const std::shared_ptr<kv::Port>& port) {
  const std::lock_guard lock(names_lock);
  std::erase_if(names(), [](const auto& entry) { return entry.second.expired(); });
  do names_given++;
  while (names_given == 0 || names().contains(names_given));
  names()[names_given] = port;
  return names_given;
}

std::shared_ptr<kv::Port> find_port(uint32_t number) {
  const std::lock_guard lock(names_lock);
  const auto found = names().find(number);
  return found == names().end() ? nullptr : found->second.lock();
}

kv::Status AgentPorts::add(kv::Agent& agent, Napi::Value words, uint32_t* data, const kv::PortShape& shape,
                           uint32_t* number_out, std::string* error) {
  auto port = std::make_shared<kv::Port>(data, shape);
  const kv::Status status = agent.add_port(port, error);
  if (status != kv::Status::kOk) return status;
  *number_out = name_port(port);
  ports_[*number_out] = {std::move(port), Napi::Persistent(words.As<Napi::Object>())};
  return status;
}

bool AgentPorts::close(uint32_t number) {
  const auto found = ports_.find(number);
  if (found != ports_.end()) found->second.port->close();
  return found != ports_.end();
}

void AgentPorts::sweep() {
  std::erase_if(ports_, [](const auto& entry) { return entry.second.port->is_over(); });
}

kv::Status PortUser::open(Napi::Env env, std::shared_ptr<kv::Port> port, napi_value wake,
                          std::unique_ptr<PortUser>* out, std::string* error) {
  std::unique_ptr<PortUser> self(new PortUser(env, std::move(port)));
  PortUser* raw = self.get();
  const napi_value name = Napi::String::New(env, "millrace transfer port");
  const napi_status made = napi_create_threadsafe_function(env, wake, nullptr, name, 0, 1, nullptr, nullptr, raw,
                                                           wake_script, &raw->wake_);
  if (made != napi_ok) {
    *error = "the runtime gave no thread-safe function";
    return kv::Status::kSystem;
  }
  napi_unref_threadsafe_function(env, raw->wake_);
  const kv::Status status = raw->port_->open([raw] { raw->wake(); });
  if (status != kv::Status::kOk) {
    *error = status == kv::Status::kBusy ? "a port is opened once" : "the port is closed";
    napi_release_threadsafe_function(std::exchange(raw->wake_, nullptr), napi_tsfn_abort);
    return status;
  }
  // After the thread-safe function has registered its own hook: hooks run backwards, so ours runs while it still lives.
  napi_add_env_cleanup_hook(env, end, raw);
  *out = std::move(self);
  return status;
}

PortUser::~PortUser() {
  if (wake_ == nullptr) return;
  napi_remove_env_cleanup_hook(env_, end, this);
  end(this);
}

void PortUser::end(void* data) {
  auto* self = static_cast<PortUser*>(data);
  self->port_->leave();
  napi_release_threadsafe_function(std::exchange(self->wake_, nullptr), napi_tsfn_abort);
}

void PortUser::wake() {
  if (!is_pending_.exchange(true)) napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

void PortUser::wake_script(napi_env env, napi_value wake, void* context, void*) {
  // Both are null when the environment ends with a call still queued.
  if (env == nullptr || wake == nullptr) return;
  static_cast<PortUser*>(context)->is_pending_.store(false);
  napi_value receiver;
  napi_get_undefined(env, &receiver);
  // An exception of the script stays pending, and the runtime raises it as uncaught.
  napi_call_function(env, receiver, wake, 0, nullptr, nullptr);
}

void PortUser::hold(bool is_held) {
  if (is_held) napi_ref_threadsafe_function(env_, wake_);
  else napi_unref_threadsafe_function(env_, wake_);
}

napi_value PortUser::map_pool(uint32_t id, kv::Status* status, std::string* error) {
  std::unique_ptr<kv::Pool> pool;
  *status = port_->map_pool(id, &pool, error);
  if (*status != kv::Status::kOk) return nullptr;
  napi_value buffer = nullptr;
  const auto unmap = [](napi_env, void*, void* mapped) { delete static_cast<kv::Pool*>(mapped); };
  if (napi_create_external_arraybuffer(env_, pool->address(), pool->bytes(), unmap, pool.get(), &buffer) != napi_ok) {
    *status = kv::Status::kUnsupported;
    *error = "this runtime makes no external ArrayBuffer of " + std::to_string(pool->bytes()) + " bytes";
    return nullptr;
  }
  pool.release();
  return buffer;
}

}  // namespace millrace
