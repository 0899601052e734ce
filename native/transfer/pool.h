// Memory whose blocks can be moved (K0): of our own making (memfd, in huge pages where there are any, so that another
// process can map it) or registered (memory of torch, numpy, a driver). Made and closed by the owner of the agent, read by
// its progress thread; the block table says what each block is in use for.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "block_table.h"
#include "layout.h"
#include "transport.h"

namespace millrace::kv {

inline constexpr uint64_t kPoolBytesMax = uint64_t{1} << 46;
inline constexpr uint32_t kPoolNameBytesMax = 200;
inline constexpr int32_t kDeviceMax = 1023;

// A block table in a memfd of its own, sealed so that nobody but its maker can write there: what a peer on the host maps to
// see generations move.
class TableMemory {
 public:
  static Status create(uint32_t blocks, std::unique_ptr<TableMemory>* out, std::string* error);
  // The table of another process, read only. The descriptor is taken over, whatever the outcome.
  static Status attach(int descriptor, uint64_t bytes, std::unique_ptr<TableMemory>* out, std::string* error);
  ~TableMemory();
  TableMemory(const TableMemory&) = delete;

  BlockTable* table() const { return table_.get(); }
  int descriptor() const { return descriptor_; }
  uint64_t bytes() const { return bytes_; }

 private:
  TableMemory() = default;
  std::unique_ptr<BlockTable> table_;
  void* address_ = nullptr;
  uint64_t bytes_ = 0;
  int descriptor_ = -1;
};

class Pool {
 public:
  // Maps a new memfd, zeroed and with all its pages, so that no transfer meets a page that is not there. Huge pages are
  // tried first; `page_bytes()` says what it became. Sealed: its size is fixed, and no peer's access can fail for a
  // file that shrank. kSystem when there is not so much memory.
  static Status create(uint64_t bytes, const std::string& name, std::unique_ptr<Pool>* out, std::string* error);
  // Memory of the caller, who keeps it until the pool is closed. `device` is the GPU's number, for kDevice. Host memory
  // is advised to be in huge pages, as copies between processes depend on it; the kernel may follow late or never.
  static Status wrap(void* address, uint64_t bytes, MemoryKind kind, int32_t device, std::unique_ptr<Pool>* out,
                     std::string* error);
  // Memory of a device, at its address there. `keep` is dropped when the pool goes: what gives the memory back where it
  // was made for this pool, null where the caller keeps it. `device` is the driver's number of the device.
  static Status wrap_device(int32_t device, uint64_t address, uint64_t bytes, std::shared_ptr<void> keep,
                            std::unique_ptr<Pool>* out, std::string* error);
  // A pool of another process, by its descriptor, which is taken over, whatever the outcome. kNotAllowed for a descriptor
  // that is no sealed memfd, kMismatch for one of another size.
  static Status map(int descriptor, uint64_t bytes, std::unique_ptr<Pool>* out, std::string* error);
  ~Pool();
  Pool(const Pool&) = delete;

  // Of a mapped pool: puts about so many more of its bytes into the page tables of this process, so that transfers do not
  // have to, page by page; false when there are none left.
  bool map_more(uint64_t bytes);

  // Of device memory, where only the device may look.
  uint8_t* address() const { return address_; }
  uint64_t bytes() const { return bytes_; }
  // Of the memory that backs it; for wrapped memory the least that it can be.
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
  // Or a table that peers on this host can map.
  Status create_table(uint32_t blocks, std::string* error);
  BlockTable* table() const { return shared_table_ != nullptr ? shared_table_->table() : table_.get(); }
  // Null where peers cannot see the table.
  const TableMemory* shared_table() const { return shared_table_.get(); }
  // Given by the agent.
  uint32_t id = 0;

 private:
  Pool() = default;
  uint8_t* address_ = nullptr;
  uint64_t bytes_ = 0;
  uint64_t page_bytes_ = 0;
  MemoryKind kind_ = MemoryKind::kHost;
  int32_t device_ = 0;
  std::shared_ptr<void> keep_;
  int descriptor_ = -1;
  // Bytes that are in the page tables, where that is not all.
  uint64_t present_bytes_ = 0;
  // 0 where the mapping is not ours.
  uint64_t mapped_bytes_ = 0;
  Layout layout_;
  std::unique_ptr<BlockTable> table_;
  std::unique_ptr<TableMemory> shared_table_;
};

}  // namespace millrace::kv
