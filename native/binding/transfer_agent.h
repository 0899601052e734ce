// A transfer agent as one JS thread holds it: the agent, the arrays of its pools, and the wake-up that joins its progress
// thread to the event loop. A wake-up is a pending flag and one thread-safe function, so that whatever happened until JS
// runs costs one call; it holds the event loop only while transfers of this agent are in flight.
//
// Ends: by `detach`, or with the environment, whose cleanup hook joins the progress thread before anything it could
// touch (the wake-up, wrapped arrays) is gone.
#pragma once

#include <napi.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "agent.h"
#include "transfer_port.h"

namespace millrace {

class TransferAgent {
 public:
  // The arrays outlive the agent.
  static kv::Status open(Napi::Env env, kv::AgentOptions options, napi_value wake, std::span<uint32_t> events,
                         std::span<uint8_t> notifications, std::unique_ptr<TransferAgent>* out, std::string* error);
  ~TransferAgent();

  kv::Agent& agent() { return *agent_; }
  AgentPorts& ports() { return ports_; }
  // Hands a pool over. `array`: the memory that it wraps, or nullptr.
  int64_t add_pool(std::unique_ptr<kv::Pool> pool, const kv::Layout& layout, bool has_table, napi_value array,
                   std::string* error);
  kv::Status close_pool(uint32_t id);
  // The pool's memory as an external ArrayBuffer; nullptr with `error` where the runtime allows none.
  napi_value buffer(uint32_t id, std::string* error);
  int64_t submit(kv::TransferRequest request, std::string* error);
  // Writes events into the arrays; 0 when nothing has happened.
  uint32_t poll();

 private:
  struct Memory {
    // The array that a pool wraps, or the buffer that was made over the pool.
    Napi::ObjectReference array;
    bool is_external = false;
  };

  TransferAgent(Napi::Env env, std::span<uint32_t> events, std::span<uint8_t> notifications);
  static void end(void* self);
  static void wake_script(napi_env env, napi_value wake, void* context, void* data);
  void wake();
  void write(const kv::Event& event, uint32_t* words, size_t notification_at);

  Napi::Env env_;
  napi_threadsafe_function wake_ = nullptr;
  // Set by the progress thread, cleared by the JS thread before it polls.
  std::atomic<bool> is_pending_{false};
  // By pool.
  std::unordered_map<uint32_t, Memory> memory_;
  std::span<uint32_t> events_;
  std::span<uint8_t> notifications_;
  // Taken from the agent and not yet written, from `next_` on.
  std::vector<kv::Event> taken_;
  size_t next_ = 0;
  uint32_t in_flight_ = 0;
  AgentPorts ports_;
  // Last, so that it ends before what its progress thread touches.
  std::unique_ptr<kv::Agent> agent_;
};

}  // namespace millrace
