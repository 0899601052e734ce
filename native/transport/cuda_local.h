// Pools that agents of one process reach in place (K3): the driver opens no handle in the process that made it, and there is
// no need to. What is told apart here is only when a pool may go: not while another agent's device is at its bytes. Any thread.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>

#include "host_socket.h"

namespace millrace::kv {

class LocalPool {
 public:
  explicit LocalPool(uint64_t address) : address_(address), process_(getpid()) {}

  // False when the pool is going. One of the two sides sees the other.
  bool use() {
    users_.fetch_add(1, std::memory_order_seq_cst);
    if (!is_closing_.load(std::memory_order_seq_cst)) return true;
    unuse();
    return false;
  }
  void unuse() { users_.fetch_sub(1, std::memory_order_seq_cst); }
  // True when nobody uses it; nobody will until it is opened again.
  bool close() {
    is_closing_.store(true, std::memory_order_seq_cst);
    return users_.load(std::memory_order_seq_cst) == 0;
  }
  void reopen() { is_closing_.store(false, std::memory_order_seq_cst); }

  uint64_t address() const { return address_; }
  // A forked child has the parent's list, and not its memory.
  bool is_here() const { return process_ == getpid(); }

 private:
  uint64_t address_;
  pid_t process_;
  std::atomic<uint32_t> users_{0};
  std::atomic<bool> is_closing_{false};
};

// By the transport's identity and the pool's number.
void share_local_pool(const HostUuid& agent, uint32_t pool, std::shared_ptr<LocalPool> local);
void drop_local_pool(const HostUuid& agent, uint32_t pool);
// Null where there is none in this process.
std::shared_ptr<LocalPool> find_local_pool(const HostUuid& agent, uint32_t pool);

}  // namespace millrace::kv
