// UCX as this process has it: one context, made when the first agent wants it and kept, with settings that leave the
// process alone (no hooks on memory functions, no registration cache), as everything is registered once; the environment
// (UCX_…) goes before our settings. Memory that UCX itself allocated can be mapped by peers of the host; all other memory
// is only registered with the devices. Any thread.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "pool.h"
#include "ucx_api.h"

namespace millrace::kv {

class UcxContext {
 public:
  // Null, with the reason, where UCX cannot be had. Not to be used in a child that was forked after it.
  static UcxContext* get(std::string* reason);

  const UcxApi& api() const { return *api_; }
  void* handle() const { return handle_; }
  // Whether its lanes include memory that processes of a host share.
  bool has_shared_memory() const { return has_shared_memory_; }

  // What UCX calls the memory of a pool, and the key that peers need: empty where there is none. kSystem with the reason.
  Status register_pool(const Pool& pool, void** memory, std::vector<uint8_t>* rkey, std::string* error);
  void unregister_pool(const Pool& pool, void* memory);

 private:
  friend class UcxMemory;
  struct Allocated {
    uint64_t bytes;
    void* memory;
  };

  UcxContext() = default;
  bool open(std::string* reason);
  void* allocated(const Pool& pool);

  const UcxApi* api_ = nullptr;
  void* handle_ = nullptr;
  bool has_shared_memory_ = false;
  std::mutex lock_;
  // By address.
  std::map<const uint8_t*, Allocated> allocated_;
};

// Memory that UCX allocated, for a pool to wrap: peers on the host reach it through UCX with no help of ours.
class UcxMemory {
 public:
  // kUnsupported without UCX, kSystem where it has no memory; with the reason.
  static Status allocate(uint64_t bytes, std::unique_ptr<UcxMemory>* out, std::string* error);
  ~UcxMemory();
  UcxMemory(const UcxMemory&) = delete;

  uint8_t* address() const { return address_; }
  uint64_t bytes() const { return bytes_; }

 private:
  UcxMemory(UcxContext* context, void* memory) : context_(context), memory_(memory) {}
  UcxContext* context_;
  void* memory_;
  uint8_t* address_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace millrace::kv
