// Memory whose blocks can be moved (K0): of our own making (memfd, in huge pages where there are any, so that another
// process can map it) or registered (memory of torch, numpy, a driver). Made and closed by the owner of the agent, read by
// its progress thread; the block table says what each block is in use for.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "block_table.h"
#include "layout.h"
#include "transport.h"

namespace millrace::kv {

class Pool {
 public:
  // Maps a new memfd, zeroed. Huge pages are tried first; `page_bytes()` says what it became.
  static Status create(uint64_t bytes, const std::string& name, std::unique_ptr<Pool>* out, std::string* error);
  // Memory of the caller, who keeps it until the pool is closed. `device` is the GPU's number, for kDevice.
  static Status wrap(void* address, uint64_t bytes, MemoryKind kind, int32_t device, std::unique_ptr<Pool>* out,
                     std::string* error);
  // A pool of another process, by its descriptor, which is taken over.
  static Status map(int descriptor, uint64_t bytes, std::unique_ptr<Pool>* out, std::string* error);
  ~Pool();

  uint8_t* address() const { return address_; }
  uint64_t bytes() const { return bytes_; }
  uint64_t page_bytes() const { return page_bytes_; }
  MemoryKind kind() const { return kind_; }
  int32_t device() const { return device_; }
  // -1 for memory that is not ours.
  int descriptor() const { return descriptor_; }

  // Set once, before the agent has the pool.
  void set_layout(const Layout& layout) { layout_ = layout; }
  const Layout& layout() const { return layout_; }
  // Null where the caller accounts for its blocks itself.
  void set_table(std::unique_ptr<BlockTable> table) { table_ = std::move(table); }
  BlockTable* table() const { return table_.get(); }
  // Given by the agent.
  uint32_t id = 0;

 private:
  Pool() = default;
  uint8_t* address_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t page_bytes_ = 0;
  MemoryKind kind_ = MemoryKind::kHost;
  int32_t device_ = 0;
  int descriptor_ = -1;
  bool is_mapped_ = false;
  Layout layout_;
  std::unique_ptr<BlockTable> table_;
};

}  // namespace millrace::kv
