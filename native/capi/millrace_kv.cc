// The C face of the transfer engine: checks what C callers give, calls the agent, turns its answers into C. See millrace_kv.h.
#include "millrace_kv.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "agent.h"
#include "cuda_pool.h"

namespace kv = millrace::kv;

struct mkv_agent {
  std::mutex lock;
  std::condition_variable woken;
  bool is_woken = false;
  // What the last mkv_poll gave out: its notifications live here.
  std::vector<kv::Event> events;
  // Last, so that its thread ends before what it wakes.
  std::unique_ptr<kv::Agent> agent;
};

namespace {

static_assert(MKV_CLOSED == static_cast<int32_t>(kv::Status::kClosed));
static_assert(MKV_LEASE_EXPIRED == static_cast<int>(kv::EventKind::kLeaseExpired));
static_assert(MKV_OPAQUE == static_cast<int>(kv::LayoutKind::kOpaque));

constexpr uint32_t kEventsMax = 4096;
constexpr uint32_t kPlanesMax = 2 * kv::kLayersMax;
constexpr uint64_t kNsPerMs = 1'000'000;

thread_local std::string last_error;

int32_t fail(kv::Status status, std::string error) {
  last_error = error.empty() ? kv::status_name(status) : std::move(error);
  return static_cast<int32_t>(status);
}

int32_t result(kv::Status status, std::string error = {}) {
  return status == kv::Status::kOk ? MKV_OK : fail(status, std::move(error));
}

// The caller's struct, filled up with zeros where the caller knows fewer fields than this library.
template <class Params>
bool read(const Params* given, const char* name, Params* out) {
  *out = Params{};
  if (given == nullptr || given->abi != MKV_ABI || given->size < 2 * sizeof(uint32_t)) {
    fail(kv::Status::kInvalid, std::string(name) + " must be a struct with its size and abi " + std::to_string(MKV_ABI));
    return false;
  }
  std::memcpy(static_cast<void*>(out), given, std::min<size_t>(given->size, sizeof(Params)));
  return true;
}

bool at_most(uint32_t value, uint32_t max, const char* field) {
  if (value <= max) return true;
  fail(kv::Status::kInvalid,
       std::string(field) + " must be 0 to " + std::to_string(max) + "; got " + std::to_string(value));
  return false;
}

bool is_given(const void* pointer, const char* field) {
  if (pointer != nullptr) return true;
  fail(kv::Status::kInvalid, std::string(field) + " must not be null");
  return false;
}

std::string text(const char* given) { return given == nullptr ? std::string() : std::string(given); }

std::vector<std::string> split(const std::string& names) {
  std::vector<std::string> parts;
  for (size_t from = 0; from < names.size();) {
    const size_t comma = std::min(names.find(',', from), names.size());
    parts.push_back(names.substr(from, comma - from));
    from = comma + 1;
  }
  return parts;
}

int32_t copy_out(const void* from, size_t length, void* out, size_t* bytes) {
  if (!is_given(bytes, "bytes")) return MKV_INVALID;
  const size_t room = std::exchange(*bytes, length);
  if (out == nullptr || room < length)
    return fail(kv::Status::kFull, "needs room for " + std::to_string(length) + " bytes; got " + std::to_string(room));
  std::memcpy(out, from, length);
  return MKV_OK;
}

int32_t read_layout(const mkv_layout* given, uint64_t pool_bytes, kv::Layout* out) {
  mkv_layout from;
  if (!read(given, "layout", &from) || !at_most(from.kind, MKV_OPAQUE, "layout.kind") ||
      !at_most(from.block_order, 1, "layout.block_order") || !at_most(from.inner_order, 1, "layout.inner_order") ||
      !at_most(from.kv_split, 2, "layout.kv_split") || !at_most(from.plane_count, kPlanesMax, "layout.plane_count") ||
      (from.plane_count > 0 && !is_given(from.planes, "layout.planes"))) {
    return MKV_INVALID;
  }
  kv::PagedKvShape shape;
  shape.layers = from.layers;
  shape.block_tokens = from.block_tokens;
  shape.heads = from.heads;
  shape.heads_total = from.heads_total;
  shape.head_dim = from.head_dim;
  shape.element_bytes = from.element_bytes;
  shape.tp_rank = from.tp_rank;
  shape.tp_size = from.tp_size;
  shape.block_order = static_cast<kv::BlockOrder>(from.block_order);
  shape.inner_order = static_cast<kv::InnerOrder>(from.inner_order);
  shape.kv_split = static_cast<kv::KvSplit>(from.kv_split);
  const std::string model = text(from.model);
  std::string error;
  switch (static_cast<kv::LayoutKind>(from.kind)) {
    case kv::LayoutKind::kPagedKv:
      return result(kv::Layout::paged_kv(shape, from.blocks, pool_bytes, model, out, &error), error);
    case kv::LayoutKind::kOpaque:
      return result(kv::Layout::opaque(from.block_bytes, from.stride, from.blocks, pool_bytes, out, &error), error);
    case kv::LayoutKind::kTensorList: break;
  }
  std::vector<kv::Plane> planes;
  for (uint32_t i = 0; i < from.plane_count; i++) planes.push_back({from.planes[i].base, from.planes[i].block_stride});
  return result(kv::Layout::tensor_list(shape, planes, from.blocks, pool_bytes, model, out, &error), error);
}

kv::Status make_pool(const mkv_pool_params& from, std::unique_ptr<kv::Pool>* out, std::string* error) {
  if (static_cast<kv::MemoryKind>(from.memory_kind) == kv::MemoryKind::kDevice) {
    if (from.address == nullptr) return kv::create_device_pool(from.device, from.bytes, out, error);
    return kv::register_device_pool(from.device, reinterpret_cast<uintptr_t>(from.address), from.bytes, out, error);
  }
  if (from.address != nullptr) return kv::Pool::wrap(from.address, from.bytes, kv::MemoryKind::kHost, 0, out, error);
  return kv::Pool::create(from.bytes, from.name == nullptr ? "millrace-kv" : from.name, out, error);
}

bool read_request(const mkv_agent& agent, const mkv_transfer_params& from, kv::TransferRequest* out) {
  const uint32_t count = from.block_count;
  if (!at_most(from.direction, 1, "direction") || !at_most(from.integrity, 2, "integrity") ||
      !at_most(from.reader, 2, "reader") || !at_most(from.priority, 255, "priority") ||
      !at_most(count, kv::kBlocksPerTransferMax, "block_count") || !is_given(from.local_blocks, "local_blocks") ||
      !is_given(from.remote_blocks, "remote_blocks") ||
      !at_most(from.notification_bytes, kv::kCallerNotificationBytesMax, "notification_bytes") ||
      (from.notification_bytes > 0 && !is_given(from.notification, "notification"))) {
    return false;
  }
  out->peer = from.peer;
  out->direction = static_cast<kv::Direction>(from.direction);
  out->local_pool = from.local_pool;
  out->remote_pool = from.remote_pool;
  out->part = {from.first_layer, from.layers, from.first_head, from.heads};
  out->local_blocks.assign(from.local_blocks, from.local_blocks + count);
  out->remote_blocks.assign(from.remote_blocks, from.remote_blocks + count);
  if (from.remote_generations != nullptr)
    out->remote_generations.assign(from.remote_generations, from.remote_generations + count);
  if (from.notification_bytes > 0)
    out->notification.assign(from.notification, from.notification + from.notification_bytes);
  out->integrity = static_cast<kv::Integrity>(from.integrity);
  out->reader = static_cast<kv::Reader>(from.reader);
  out->priority = static_cast<uint8_t>(from.priority);
  out->deadline_ns = from.deadline_ms == 0 ? 0 : agent.agent->now_ns() + from.deadline_ms * kNsPerMs;
  out->lease = from.lease;
  out->transport = text(from.transport);
  return true;
}

}  // namespace

uint32_t mkv_abi(void) { return MKV_ABI; }

const char* mkv_status_name(int32_t status) { return kv::status_name(static_cast<kv::Status>(status)); }

const char* mkv_last_error(void) { return last_error.c_str(); }

int32_t mkv_agent_open(const mkv_agent_params* params, mkv_agent** out) {
  mkv_agent_params from;
  if (!is_given(out, "out") || !read(params, "params", &from)) return MKV_INVALID;
  auto opened = std::make_unique<mkv_agent>();
  kv::AgentOptions options;
  options.name = text(from.name);
  options.transports = split(text(from.transports));
  if (from.listen_host != nullptr) options.listen_host = from.listen_host;
  if (from.operations_max != 0) options.operations_max = from.operations_max;
  options.spin_us = from.spin_us;
  options.wake = [raw = opened.get()] {
    const std::lock_guard lock(raw->lock);
    raw->is_woken = true;
    raw->woken.notify_one();
  };
  std::string error;
  const kv::Status status = kv::Agent::create(options, &opened->agent, &error);
  if (status != kv::Status::kOk) return fail(status, std::move(error));
  *out = opened.release();
  return MKV_OK;
}

void mkv_agent_close(mkv_agent* agent) { delete agent; }

int32_t mkv_pool_open(mkv_agent* agent, const mkv_pool_params* params, uint32_t* pool) {
  mkv_pool_params from;
  if (!is_given(agent, "agent") || !is_given(pool, "pool") || !read(params, "params", &from) ||
      !at_most(from.memory_kind, 1, "memory_kind")) {
    return MKV_INVALID;
  }
  kv::Layout layout;
  if (const int32_t status = read_layout(from.layout, from.bytes, &layout); status != MKV_OK) return status;
  std::unique_ptr<kv::Pool> made;
  std::string error;
  const kv::Status status = make_pool(from, &made, &error);
  if (status != kv::Status::kOk) return fail(status, std::move(error));
  made->set_layout(layout);
  return result(agent->agent->add_pool(std::move(made), pool, &error), error);
}

void* mkv_pool_address(mkv_agent* agent, uint32_t id) {
  if (!is_given(agent, "agent")) return nullptr;
  const kv::Pool* pool = agent->agent->pool(id);
  return pool == nullptr ? nullptr : pool->address();
}

int32_t mkv_pool_close(mkv_agent* agent, uint32_t pool) {
  return is_given(agent, "agent") ? result(agent->agent->remove_pool(pool)) : MKV_INVALID;
}

int32_t mkv_metadata(mkv_agent* agent, uint8_t* out, size_t* bytes) {
  if (!is_given(agent, "agent")) return MKV_INVALID;
  const std::vector<uint8_t> blob = agent->agent->metadata();
  return copy_out(blob.data(), blob.size(), out, bytes);
}

int32_t mkv_peer_add(mkv_agent* agent, const uint8_t* metadata, size_t bytes, uint32_t* peer) {
  if (!is_given(agent, "agent") || !is_given(metadata, "metadata") || !is_given(peer, "peer")) return MKV_INVALID;
  std::string error;
  return result(agent->agent->add_peer({metadata, bytes}, peer, &error), error);
}

int32_t mkv_peer_remove(mkv_agent* agent, uint32_t peer) {
  return is_given(agent, "agent") ? result(agent->agent->remove_peer(peer)) : MKV_INVALID;
}

int32_t mkv_submit(mkv_agent* agent, const mkv_transfer_params* params, uint64_t* id) {
  mkv_transfer_params from;
  kv::TransferRequest request;
  if (!is_given(agent, "agent") || !is_given(id, "id") || !read(params, "params", &from) ||
      !read_request(*agent, from, &request)) {
    return MKV_INVALID;
  }
  std::string error;
  const int64_t submitted = agent->agent->submit(std::move(request), &error);
  if (submitted < 0) return fail(static_cast<kv::Status>(submitted), std::move(error));
  *id = static_cast<uint64_t>(submitted);
  return MKV_OK;
}

int32_t mkv_cancel(mkv_agent* agent, uint64_t id) {
  if (!is_given(agent, "agent")) return MKV_INVALID;
  agent->agent->cancel(id);
  return MKV_OK;
}

int32_t mkv_notify(mkv_agent* agent, uint32_t peer, const uint8_t* bytes, size_t length) {
  if (!is_given(agent, "agent") || (length > 0 && !is_given(bytes, "bytes"))) return MKV_INVALID;
  return result(agent->agent->notify(peer, {bytes, length}));
}

int32_t mkv_poll(mkv_agent* agent, mkv_event* out, uint32_t max, uint32_t timeout_ms) {
  if (!is_given(agent, "agent") || !is_given(out, "out") || !at_most(max, kEventsMax, "max")) return MKV_INVALID;
  agent->events.clear();
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  // The flag is cleared before the ring is read: what comes after the read sets it again.
  for (bool is_late = timeout_ms == 0;;) {
    {
      const std::lock_guard lock(agent->lock);
      agent->is_woken = false;
    }
    if (agent->agent->poll(max, &agent->events) > 0 || is_late) break;
    std::unique_lock lock(agent->lock);
    is_late = !agent->woken.wait_until(lock, until, [agent] { return agent->is_woken; });
  }
  for (size_t i = 0; i < agent->events.size(); i++) {
    const kv::Event& event = agent->events[i];
    out[i] = {static_cast<uint32_t>(event.kind),
              static_cast<int32_t>(event.status),
              event.id,
              event.bytes,
              event.posted_ns,
              event.begun_ns,
              event.done_ns,
              event.peer,
              static_cast<uint32_t>(event.notification.size()),
              event.notification.empty() ? nullptr : event.notification.data(),
              event.transport};
  }
  return static_cast<int32_t>(agent->events.size());
}

int32_t mkv_lease(mkv_agent* agent, uint32_t pool, const uint32_t* blocks, uint32_t count, uint32_t ttl_ms,
                  uint32_t peer, uint64_t* lease) {
  if (!is_given(agent, "agent") || !is_given(blocks, "blocks") || !is_given(lease, "lease") ||
      !at_most(count, kv::kBlocksPerTransferMax, "count")) {
    return MKV_INVALID;
  }
  std::string error;
  const int64_t id = agent->agent->lease(pool, {blocks, count}, ttl_ms, peer, &error);
  if (id < 0) return fail(static_cast<kv::Status>(id), std::move(error));
  *lease = static_cast<uint64_t>(id);
  return MKV_OK;
}

int32_t mkv_lease_release(mkv_agent* agent, uint64_t lease) {
  return is_given(agent, "agent") ? result(agent->agent->release_lease(lease)) : MKV_INVALID;
}

int32_t mkv_lease_hold(mkv_agent* agent, uint32_t peer, uint64_t lease) {
  return is_given(agent, "agent") ? result(agent->agent->hold_lease(peer, lease)) : MKV_INVALID;
}

int32_t mkv_lease_drop(mkv_agent* agent, uint32_t peer, uint64_t lease) {
  return is_given(agent, "agent") ? result(agent->agent->drop_lease(peer, lease)) : MKV_INVALID;
}

int32_t mkv_stats(mkv_agent* agent, char* out, size_t* bytes) {
  if (!is_given(agent, "agent")) return MKV_INVALID;
  const std::string stats = agent->agent->stats();
  return copy_out(stats.data(), stats.size(), out, bytes);
}
