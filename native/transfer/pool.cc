// Pools of our own making, registered ones, and those of other processes, with their block tables. See pool.h.
#include "pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

// Newer than some C libraries that this is built with; a kernel that lacks them answers EINVAL.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace millrace::kv {
namespace {

constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;
// MFD_HUGE_2MB, of linux/memfd.h.
constexpr unsigned kHuge2MiB = 21u << 26;
constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;

uint64_t small_page_bytes() { return static_cast<uint64_t>(sysconf(_SC_PAGESIZE)); }

uint64_t round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

std::string system_error(const std::string& what) { return what + ": " + std::strerror(errno); }

bool in_range(uint64_t bytes, std::string* error) {
  if (bytes >= 1 && bytes <= kPoolBytesMax) return true;
  *error = "bytes must be from 1 to " + std::to_string(kPoolBytesMax) + "; got " + std::to_string(bytes);
  return false;
}

bool is_whole(uint64_t address, uint64_t bytes, std::string* error) {
  if (!in_range(bytes, error)) return false;
  if (address != 0 && address <= UINTPTR_MAX - bytes) return true;
  *error = "address must not be null and its bytes must not wrap around; got " + std::to_string(address);
  return false;
}

struct Memfd {
  int descriptor = -1;
  void* address = MAP_FAILED;
  uint64_t mapped = 0;
};

// All pages now or an error now: a page that cannot be had later would kill whoever touches it.
bool populate(void* address, uint64_t bytes) {
  return madvise(address, bytes, MADV_POPULATE_WRITE) == 0 || errno == EINVAL;
}

// `extra_seals` besides those of the size. On failure errno says why and nothing is left.
bool make_memfd(const char* name, uint64_t bytes, uint64_t page_bytes, int extra_seals, Memfd* out) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (page_bytes == kHugePageBytes) flags |= MFD_HUGETLB | kHuge2MiB;
  const int descriptor = memfd_create(name, flags);
  if (descriptor < 0) return false;
  const uint64_t mapped = round_up(bytes, page_bytes);
  void* address = MAP_FAILED;
  if (ftruncate(descriptor, static_cast<off_t>(mapped)) == 0) {
    address = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  }
  if (address != MAP_FAILED) {
    if (page_bytes != kHugePageBytes) madvise(address, mapped, MADV_HUGEPAGE);
    const bool is_whole = populate(address, mapped);
    if (is_whole && fcntl(descriptor, F_ADD_SEALS, kSizeSeals | extra_seals) == 0) {
      *out = {descriptor, address, mapped};
      return true;
    }
    const int why = errno;
    munmap(address, mapped);
    errno = why;
  }
  const int why = errno;
  close(descriptor);
  errno = why;
  return false;
}

// Of a descriptor that came from another process: a memfd that can never shrink under us, and as long as it was said.
Status check_foreign(int descriptor, uint64_t bytes, uint64_t* page_bytes, uint64_t* mapped, std::string* error) {
  const int seals = fcntl(descriptor, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    *error = "the descriptor is no memfd that is sealed against shrinking";
    return Status::kNotAllowed;
  }
  struct stat facts;
  if (fstat(descriptor, &facts) != 0) {
    *error = system_error("fstat of the peer's memory");
    return Status::kSystem;
  }
  *page_bytes = static_cast<uint64_t>(facts.st_blksize);
  const auto size = static_cast<uint64_t>(facts.st_size);
  *mapped = size;
  if (size == round_up(bytes, small_page_bytes()) || size == round_up(bytes, kHugePageBytes)) return Status::kOk;
  *error = "the peer's memory has " + std::to_string(size) + " bytes; " + std::to_string(bytes) + " were said";
  return Status::kMismatch;
}

}  // namespace

Status TableMemory::create(uint32_t blocks, std::unique_ptr<TableMemory>* out, std::string* error) {
  if (blocks < 1 || blocks > kBlocksMax) {
    *error = "blocks must be from 1 to " + std::to_string(kBlocksMax) + "; got " + std::to_string(blocks);
    return Status::kInvalid;
  }
  Memfd memory;
  const uint64_t bytes = BlockTable::bytes_for(blocks);
  if (!make_memfd("millrace-blocks", bytes, small_page_bytes(), F_SEAL_FUTURE_WRITE, &memory)) {
    *error = system_error("memory for a table of " + std::to_string(blocks) + " blocks");
    return Status::kSystem;
  }
  std::unique_ptr<TableMemory> made(new TableMemory);
  made->address_ = memory.address;
  made->bytes_ = memory.mapped;
  made->descriptor_ = memory.descriptor;
  const Status status = BlockTable::create(memory.address, memory.mapped, blocks, &made->table_, error);
  if (status == Status::kOk) *out = std::move(made);
  return status;
}

Status TableMemory::attach(int descriptor, uint64_t bytes, std::unique_ptr<TableMemory>* out, std::string* error) {
  std::unique_ptr<TableMemory> made(new TableMemory);
  made->descriptor_ = descriptor;
  if (!in_range(bytes, error)) return Status::kInvalid;
  uint64_t page_bytes = 0;
  uint64_t mapped = 0;
  Status status = check_foreign(descriptor, bytes, &page_bytes, &mapped, error);
  if (status != Status::kOk) return status;
  void* address = mmap(nullptr, mapped, PROT_READ, MAP_SHARED, descriptor, 0);
  if (address == MAP_FAILED) {
    *error = system_error("mapping the peer's block table");
    return Status::kSystem;
  }
  made->address_ = address;
  made->bytes_ = mapped;
  status = BlockTable::attach(address, mapped, &made->table_, error);
  if (status == Status::kOk) *out = std::move(made);
  return status;
}

TableMemory::~TableMemory() {
  if (address_ != nullptr) munmap(address_, bytes_);
  if (descriptor_ >= 0) close(descriptor_);
}

Status Pool::create(uint64_t bytes, const std::string& name, std::unique_ptr<Pool>* out, std::string* error) {
  if (!in_range(bytes, error)) return Status::kInvalid;
  if (name.size() > kPoolNameBytesMax || name.find('\0') != std::string::npos) {
    *error = "name must have at most " + std::to_string(kPoolNameBytesMax) + " bytes, none of them zero; got " +
             std::to_string(name.size());
    return Status::kInvalid;
  }
  Memfd memory;
  uint64_t page_bytes = kHugePageBytes;
  // Less than half a huge page would waste more than it gains.
  if (bytes < kHugePageBytes / 2 || !make_memfd(name.c_str(), bytes, page_bytes, 0, &memory)) {
    page_bytes = small_page_bytes();
    if (!make_memfd(name.c_str(), bytes, page_bytes, 0, &memory)) {
      *error = system_error("memory for a pool of " + std::to_string(bytes) + " bytes");
      return Status::kSystem;
    }
  }
  std::unique_ptr<Pool> pool(new Pool);
  pool->address_ = static_cast<uint8_t*>(memory.address);
  pool->bytes_ = bytes;
  pool->mapped_bytes_ = memory.mapped;
  pool->present_bytes_ = memory.mapped;
  pool->page_bytes_ = page_bytes;
  pool->descriptor_ = memory.descriptor;
  *out = std::move(pool);
  return Status::kOk;
}

Status Pool::wrap(void* address, uint64_t bytes, MemoryKind kind, int32_t device, std::unique_ptr<Pool>* out,
                  std::string* error) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (kind == MemoryKind::kDevice) return wrap_device(device, begin, bytes, nullptr, out, error);
  if (!is_whole(begin, bytes, error)) return Status::kInvalid;
  const uintptr_t first = round_up(begin, kHugePageBytes);
  const uintptr_t last = (begin + bytes) / kHugePageBytes * kHugePageBytes;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  std::unique_ptr<Pool> pool(new Pool);
  pool->address_ = static_cast<uint8_t*>(address);
  pool->bytes_ = bytes;
  pool->page_bytes_ = small_page_bytes();
  *out = std::move(pool);
  return Status::kOk;
}

Status Pool::wrap_device(int32_t device, uint64_t address, uint64_t bytes, std::shared_ptr<void> keep,
                         std::unique_ptr<Pool>* out, std::string* error) {
  if (!is_whole(address, bytes, error)) return Status::kInvalid;
  if (device < 0 || device > kDeviceMax) {
    *error = "device must be from 0 to " + std::to_string(kDeviceMax) + "; got " + std::to_string(device);
    return Status::kInvalid;
  }
  std::unique_ptr<Pool> pool(new Pool);
  pool->address_ = reinterpret_cast<uint8_t*>(address);
  pool->bytes_ = bytes;
  pool->page_bytes_ = small_page_bytes();
  pool->kind_ = MemoryKind::kDevice;
  pool->device_ = device;
  pool->keep_ = std::move(keep);
  *out = std::move(pool);
  return Status::kOk;
}

Status Pool::map(int descriptor, uint64_t bytes, std::unique_ptr<Pool>* out, std::string* error) {
  std::unique_ptr<Pool> pool(new Pool);
  pool->descriptor_ = descriptor;
  if (!in_range(bytes, error)) return Status::kInvalid;
  const Status status = check_foreign(descriptor, bytes, &pool->page_bytes_, &pool->mapped_bytes_, error);
  if (status != Status::kOk) {
    pool->mapped_bytes_ = 0;
    return status;
  }
  void* address = mmap(nullptr, pool->mapped_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (address == MAP_FAILED) {
    *error = system_error("mapping the peer's pool of " + std::to_string(bytes) + " bytes");
    pool->mapped_bytes_ = 0;
    return Status::kSystem;
  }
  pool->address_ = static_cast<uint8_t*>(address);
  pool->bytes_ = bytes;
  *out = std::move(pool);
  return Status::kOk;
}

Pool::~Pool() {
  if (mapped_bytes_ > 0) munmap(address_, mapped_bytes_);
  if (descriptor_ >= 0) close(descriptor_);
}

bool Pool::map_more(uint64_t bytes) {
  if (present_bytes_ >= mapped_bytes_) return false;
  const uint64_t step = std::min(round_up(bytes, kHugePageBytes), mapped_bytes_ - present_bytes_);
  // Where the kernel will not, transfers will, later.
  const bool is_possible = madvise(address_ + present_bytes_, step, MADV_POPULATE_WRITE) == 0;
  present_bytes_ = is_possible ? present_bytes_ + step : mapped_bytes_;
  return is_possible;
}

Status Pool::create_table(uint32_t blocks, std::string* error) {
  return TableMemory::create(blocks, &shared_table_, error);
}

}  // namespace millrace::kv
