// The context of the process, and memory. See ucx_context.h.
#include "ucx_context.h"

#include <cstdlib>
#include <utility>

namespace millrace::kv {
namespace {

// Those that this version has: a setting that is not there has no effect to undo, and UCX warns of it for ever.
constexpr std::pair<const char*, const char*> kSettings[] = {
    {"MEM_EVENTS", "n"}, {"RCACHE_ENABLE", "n"}, {"MAX_RMA_RAILS", "2"}, {"IB_PCI_RELAXED_ORDERING", "try"}};

// What UCX prints by `print`, of which all calls that print take a stream.
template <class Print>
std::string printed(Print print) {
  char* text = nullptr;
  size_t size = 0;
  FILE* const stream = open_memstream(&text, &size);
  if (stream == nullptr) return "";
  print(stream);
  std::fclose(stream);
  const std::string said(text, size);
  std::free(text);
  return said;
}

}  // namespace

UcxContext* UcxContext::get(std::string* reason) {
  static std::mutex lock;
  static UcxContext* made = nullptr;
  const std::lock_guard once(lock);
  if (made != nullptr) return made;
  std::unique_ptr<UcxContext> context(new UcxContext());
  if (!context->open(reason)) return nullptr;
  return made = context.release();
}

bool UcxContext::open(std::string* reason) {
  api_ = UcxApi::get(reason);
  if (api_ == nullptr) return false;
  void* config = nullptr;
  UcsStatus status = api_->config_read(nullptr, nullptr, &config);
  if (status != kUcsOk) {
    *reason = std::string("ucp_config_read: ") + api_->status_string(status);
    return false;
  }
  const std::string known = printed([&](FILE* stream) { api_->config_print(config, stream, "", kUcsPrintConfig); });
  for (const auto& [name, value] : kSettings) {
    const std::string variable = std::string("UCX_") + name;
    if (known.find("\n" + variable + "=") != std::string::npos && std::getenv(variable.c_str()) == nullptr)
      api_->config_modify(config, name, value);
  }
  UcpParams params{};
  params.field_mask = kUcpParamFeatures | kUcpParamMtWorkersShared;
  params.features = kUcpFeatureRma | kUcpFeatureAm | kUcpFeatureWakeup;
  params.mt_workers_shared = 1;
  status = api_->init(kUcpApiMajor, kUcpApiMinor, &params, config, &handle_);
  api_->config_release(config);
  if (status != kUcsOk) {
    *reason = std::string("ucp_init: ") + api_->status_string(status);
    return false;
  }
  const std::string said = printed([&](FILE* stream) { api_->context_print(handle_, stream); });
  for (const char* name : {"posix/", "sysv/", "xpmem/"}) has_shared_memory_ |= said.find(name) != std::string::npos;
  return true;
}

void* UcxContext::allocated(const Pool& pool) {
  const std::lock_guard lock(lock_);
  auto found = allocated_.upper_bound(pool.address());
  if (found == allocated_.begin()) return nullptr;
  --found;
  const auto offset = static_cast<uint64_t>(pool.address() - found->first);
  return offset <= found->second.bytes && pool.bytes() <= found->second.bytes - offset ? found->second.memory : nullptr;
}

Status UcxContext::register_pool(const Pool& pool, void** memory, std::vector<uint8_t>* rkey, std::string* error) {
  *memory = allocated(pool);
  UcsStatus status = kUcsOk;
  if (*memory == nullptr) {
    UcpMemoryParams params{};
    params.field_mask = kUcpMemoryAddress | kUcpMemoryLength;
    params.address = pool.address();
    params.length = pool.bytes();
    status = api_->memory_map(handle_, &params, memory);
  }
  if (status != kUcsOk) {
    *error = std::string("ucp_mem_map: ") + api_->status_string(status);
    return Status::kSystem;
  }
  void* packed = nullptr;
  size_t size = 0;
  rkey->clear();
  // Memory of which no device knows anything has no key; its bytes go as messages.
  if (api_->rkey_pack(handle_, *memory, &packed, &size) != kUcsOk) return Status::kOk;
  rkey->assign(static_cast<uint8_t*>(packed), static_cast<uint8_t*>(packed) + size);
  api_->rkey_buffer_release(packed);
  return Status::kOk;
}

void UcxContext::unregister_pool(const Pool& pool, void* memory) {
  if (memory != allocated(pool)) api_->memory_unmap(handle_, memory);
}

Status UcxMemory::allocate(uint64_t bytes, std::unique_ptr<UcxMemory>* out, std::string* error) {
  UcxContext* const context = UcxContext::get(error);
  if (context == nullptr) return Status::kUnsupported;
  UcpMemoryParams params{};
  params.field_mask = kUcpMemoryLength | kUcpMemoryFlags;
  params.length = bytes;
  params.flags = kUcpMemoryAllocate;
  void* memory = nullptr;
  UcsStatus status = context->api().memory_map(context->handle(), &params, &memory);
  UcpMemoryAttributes attributes{};
  attributes.field_mask = kUcpMemoryAddress | kUcpMemoryLength;
  if (status == kUcsOk) status = context->api().memory_query(memory, &attributes);
  if (status != kUcsOk) {
    *error = std::string("ucp_mem_map of new memory: ") + context->api().status_string(status);
    return Status::kSystem;
  }
  out->reset(new UcxMemory(context, memory));
  (*out)->address_ = static_cast<uint8_t*>(attributes.address);
  (*out)->bytes_ = attributes.length;
  const std::lock_guard lock(context->lock_);
  context->allocated_[(*out)->address_] = {attributes.length, memory};
  return Status::kOk;
}

UcxMemory::~UcxMemory() {
  {
    const std::lock_guard lock(context_->lock_);
    context_->allocated_.erase(address_);
  }
  context_->api().memory_unmap(context_->handle(), memory_);
}

}  // namespace millrace::kv
