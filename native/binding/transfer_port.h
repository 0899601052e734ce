// The two ends of a port (native/transfer/port.h) in JS threads: what the agent's thread holds so that the shared memory stays,
// and what the thread that opened it holds: the wake-up of its event loop. A port is known to every thread of the process
// by its number; what a thread holds of it goes with the thread, however that ends.
#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "port.h"

namespace millrace {

// Ports of the process. Any thread.
uint32_t name_port(const std::shared_ptr<kv::Port>& port);
// Null when there is no such port any more.
std::shared_ptr<kv::Port> find_port(uint32_t number);

// The ports of one agent, with the arrays under them.
class AgentPorts {
 public:
  kv::Status add(kv::Agent& agent, Napi::Value words, uint32_t* data, const kv::PortShape& shape, uint32_t* number_out,
                 std::string* error);
  // False when it is not one of these.
  bool close(uint32_t number);
  // Lets go of the memory of those that are over.
  void sweep();

 private:
  struct Held {
    std::shared_ptr<kv::Port> port;
    Napi::ObjectReference words;
  };
  std::unordered_map<uint32_t, Held> ports_;
};

// The port of the thread that opened it.
class PortUser {
 public:
  // `wake` is called on this thread's event loop, once for all that has happened since the port asked for it.
  static kv::Status open(Napi::Env env, std::shared_ptr<kv::Port> port, napi_value wake, std::unique_ptr<PortUser>* out,
                         std::string* error);
  ~PortUser();

  kv::Port& port() { return *port_; }
  // Whether the port holds this thread's event loop.
  void hold(bool is_held);
  // A pool of the agent, mapped once more for this thread, as an ArrayBuffer that unmaps it when it is collected.
  napi_value map_pool(uint32_t pool, kv::Status* status, std::string* error);

 private:
  PortUser(Napi::Env env, std::shared_ptr<kv::Port> port) : env_(env), port_(std::move(port)) {}
  static void end(void* self);
  static void wake_script(napi_env env, napi_value wake, void* context, void* data);
  void wake();

  Napi::Env env_;
  std::shared_ptr<kv::Port> port_;
  napi_threadsafe_function wake_ = nullptr;
  // Set by the progress thread, cleared by this thread before the script looks.
  std::atomic<bool> is_pending_{false};
};

}  // namespace millrace
