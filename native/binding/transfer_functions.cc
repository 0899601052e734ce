// The addon's functions of transfer agents, pools, peers and transfers: see src/runtime/transfer-addon.ts.
#include <time.h>

#include <string>

#include "addon.h"
#include "cuda_pool.h"
#include "millrace/transfer_descriptor.h"
#include "transfer_words.h"

namespace millrace {
namespace {

constexpr size_t kHostBytesMax = 255;
static_assert(kTransferNotificationBytes == kv::kCallerNotificationBytesMax);
static_assert(kTransferMetadataBytes == kv::kMetadataBytesMax);
constexpr size_t kTransportsBytesMax = 256;

uint64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

std::vector<std::string> split(const std::string& names) {
  std::vector<std::string> parts;
  for (size_t from = 0; from < names.size();) {
    const size_t comma = std::min(names.find(',', from), names.size());
    parts.push_back(names.substr(from, comma - from));
    from = comma + 1;
  }
  return parts;
}

// Names and reasons are of our own making; quotes and backslashes are all that JSON needs escaped in them.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char letter : text) {
    if (letter == '"' || letter == '\\') out += '\\';
    out += static_cast<unsigned char>(letter) < 0x20 ? ' ' : letter;
  }
  return out + '"';
}

std::string json(const kv::TransportInfo& info) {
  const auto truth = [](bool value) { return value ? std::string("true") : std::string("false"); };
  return "{\"name\":" + quoted(info.name) + ",\"available\":" + truth(info.available) +
         ",\"reason\":" + quoted(info.reason) + ",\"memoryKinds\":" + std::to_string(info.memory_kinds) +
         ",\"sameHostOnly\":" + truth(info.same_host_only) + ",\"oneSided\":" + truth(info.one_sided) + "}";
}

}  // namespace

Napi::Value MillraceAddon::transfer_result(Call& call, kv::Status status, std::string error) {
  if (status != kv::Status::kOk) transfer_error_ = error.empty() ? kv::status_name(status) : std::move(error);
  return call.result(static_cast<int32_t>(status));
}

Napi::Value MillraceAddon::transfer_result(Call& call, int64_t id, std::string error) {
  if (id >= 0) return call.result(id);
  return transfer_result(call, static_cast<kv::Status>(id), std::move(error));
}

TransferAgent* MillraceAddon::transfer_of(Call& call) {
  const uint32_t handle = call.u32(0, "handle");
  auto* agent = attachments_.find<std::unique_ptr<TransferAgent>>(handle);
  call.require(agent != nullptr, "handle", "is not one that transferOpen gave to this thread");
  return agent == nullptr ? nullptr : agent->get();
}

Napi::Value MillraceAddon::transfer_probe(Call& call) {
  std::string all;
  for (const kv::TransportInfo& info : kv::Agent::probe()) all += (all.empty() ? "" : ",") + json(info);
  return call.result("[" + all + "]");
}

Napi::Value MillraceAddon::transfer_error(Call& call) { return call.result(transfer_error_); }

Napi::Value MillraceAddon::transfer_open(Call& call) {
  kv::AgentOptions options;
  options.name = call.text(0, "name", kv::kAgentNameBytesMax);
  options.transports = split(call.text(1, "transports", kTransportsBytesMax));
  options.listen_host = call.text(2, "listenHost", kHostBytesMax);
  options.operations_max = call.u32(3, "operationsMax");
  options.spin_us = call.u32(4, "spinUs");
  const auto events = call.shared_array<uint32_t>(5, "events");
  const auto notifications = call.shared_array<uint8_t>(6, "notifications");
  call.require_function(7, "wake");
  call.require(events.size() >= kTransferEventWords, "events", "must hold at least one event");
  call.require(notifications.size() >= kTransferNotificationBytes, "notifications",
               "must hold NOTIFICATION_BYTES_MAX bytes");
  require_place(call);
  if (call.failed()) return {};
  std::unique_ptr<TransferAgent> agent;
  std::string error;
  const kv::Status status =
      TransferAgent::open(call.env(), std::move(options), call.argument(7), events, notifications, &agent, &error);
  if (status != kv::Status::kOk) return transfer_result(call, status, std::move(error));
  return call.result(attachments_.add(std::move(agent), {call.argument(5), call.argument(6)}));
}

Napi::Value MillraceAddon::transfer_pool_create(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint64_t bytes = call.u64(1, "bytesLow", "bytesHigh");
  const std::string name = call.text(3, "name", kv::kPoolNameBytesMax);
  const auto words = call.array<uint32_t>(4, "layout");
  const std::string model = call.text(5, "model", kv::kModelBytesMax);
  const bool has_table = call.u32(6, "hasTable") != 0;
  if (call.failed()) return {};
  kv::Layout layout;
  std::string error;
  kv::Status status = read_layout(words, bytes, model, &layout, &error);
  std::unique_ptr<kv::Pool> pool;
  if (status == kv::Status::kOk) status = kv::Pool::create(bytes, name, &pool, &error);
  if (status != kv::Status::kOk) return transfer_result(call, status, std::move(error));
  const int64_t id = agent->add_pool(std::move(pool), layout, has_table, nullptr, &error);
  return transfer_result(call, id, std::move(error));
}

Napi::Value MillraceAddon::transfer_pool_wrap(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const auto memory = call.array<uint8_t>(1, "memory");
  const auto words = call.array<uint32_t>(2, "layout");
  const std::string model = call.text(3, "model", kv::kModelBytesMax);
  const bool has_table = call.u32(4, "hasTable") != 0;
  call.require(!memory.empty(), "memory", "must not be empty");
  if (call.failed()) return {};
  kv::Layout layout;
  std::string error;
  kv::Status status = read_layout(words, memory.size(), model, &layout, &error);
  std::unique_ptr<kv::Pool> pool;
  if (status == kv::Status::kOk) {
    status = kv::Pool::wrap(memory.data(), memory.size(), kv::MemoryKind::kHost, 0, &pool, &error);
  }
  if (status != kv::Status::kOk) return transfer_result(call, status, std::move(error));
  const int64_t id = agent->add_pool(std::move(pool), layout, has_table, call.argument(1), &error);
  return transfer_result(call, id, std::move(error));
}

Napi::Value MillraceAddon::transfer_pool_device(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint32_t device = call.u32(1, "device");
  const uint64_t address = call.u64(2, "addressLow", "addressHigh");
  const uint64_t bytes = call.u64(4, "bytesLow", "bytesHigh");
  const auto words = call.array<uint32_t>(6, "layout");
  const std::string model = call.text(7, "model", kv::kModelBytesMax);
  const bool has_table = call.u32(8, "hasTable") != 0;
  call.require(device <= static_cast<uint32_t>(kv::kDeviceMax), "device", "must be at most 1023");
  if (call.failed()) return {};
  kv::Layout layout;
  std::string error;
  kv::Status status = read_layout(words, bytes, model, &layout, &error);
  std::unique_ptr<kv::Pool> pool;
  const auto number = static_cast<int32_t>(device);
  if (status == kv::Status::kOk) {
    status = address == 0 ? kv::create_device_pool(number, bytes, &pool, &error)
                          : kv::register_device_pool(number, address, bytes, &pool, &error);
  }
  if (status != kv::Status::kOk) return transfer_result(call, status, std::move(error));
  const int64_t id = agent->add_pool(std::move(pool), layout, has_table, nullptr, &error);
  return transfer_result(call, id, std::move(error));
}

Napi::Value MillraceAddon::transfer_pool_buffer(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint32_t pool = call.u32(1, "pool");
  if (call.failed()) return {};
  std::string error;
  const napi_value buffer = agent->buffer(pool, &error);
  if (buffer == nullptr) return transfer_result(call, kv::Status::kUnsupported, std::move(error));
  return {call.env(), buffer};
}

Napi::Value MillraceAddon::transfer_pool_page_bytes(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint32_t id = call.u32(1, "pool");
  if (call.failed()) return {};
  const kv::Pool* pool = agent->agent().pool(id);
  if (pool == nullptr) return transfer_result(call, kv::Status::kNotFound, "pool is not open");
  return call.result(static_cast<int64_t>(pool->page_bytes()));
}

Napi::Value MillraceAddon::transfer_pool_close(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint32_t pool = call.u32(1, "pool");
  if (call.failed()) return {};
  return transfer_result(call, agent->close_pool(pool), {});
}

Napi::Value MillraceAddon::transfer_metadata(Call& call) {
  TransferAgent* agent = transfer_of(call);
  if (call.failed()) return {};
  const std::vector<uint8_t> blob = agent->agent().metadata();
  Napi::Uint8Array array = Napi::Uint8Array::New(call.env(), blob.size());
  std::copy(blob.begin(), blob.end(), array.Data());
  return array;
}

Napi::Value MillraceAddon::transfer_add_peer(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const auto blob = call.array<uint8_t>(1, "metadata");
  call.require(!blob.empty() && blob.size() <= kTransferMetadataBytes, "metadata", "must hold 1 to METADATA_BYTES_MAX bytes");
  if (call.failed()) return {};
  uint32_t peer = 0;
  std::string error;
  const kv::Status status = agent->agent().add_peer(blob, &peer, &error);
  if (status != kv::Status::kOk) return transfer_result(call, status, std::move(error));
  return call.result(peer);
}

Napi::Value MillraceAddon::transfer_remove_peer(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint32_t peer = call.u32(1, "peer");
  if (call.failed()) return {};
  return transfer_result(call, agent->agent().remove_peer(peer), {});
}

Napi::Value MillraceAddon::transfer_submit(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const auto words = call.array<uint32_t>(1, "request");
  std::span<uint8_t> notification;
  if (!call.argument(2).IsNull()) notification = call.array<uint8_t>(2, "notification");
  call.require(notification.size() <= kv::kCallerNotificationBytesMax, "notification",
               "must be of at most NOTIFICATION_BYTES_MAX bytes");
  if (call.failed()) return {};
  kv::TransferRequest request;
  std::string error;
  const kv::Status status = read_request(words, notification, monotonic_ns(), &request, &error);
  if (status != kv::Status::kOk) return transfer_result(call, status, std::move(error));
  const int64_t id = agent->submit(std::move(request), &error);
  return transfer_result(call, id, std::move(error));
}

Napi::Value MillraceAddon::transfer_cancel(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint64_t id = call.u64(1, "idLow", "idHigh");
  if (!call.failed()) agent->agent().cancel(id);
  return {};
}

Napi::Value MillraceAddon::transfer_notify(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint32_t peer = call.u32(1, "peer");
  const auto bytes = call.array<uint8_t>(2, "notification");
  call.require(bytes.size() <= kv::kCallerNotificationBytesMax, "notification",
               "must be of at most NOTIFICATION_BYTES_MAX bytes");
  if (call.failed()) return {};
  return transfer_result(call, agent->agent().notify(peer, bytes), {});
}

Napi::Value MillraceAddon::transfer_poll(Call& call) {
  TransferAgent* agent = transfer_of(call);
  if (call.failed()) return {};
  return call.result(agent->poll());
}

Napi::Value MillraceAddon::transfer_lease(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint32_t pool = call.u32(1, "pool");
  const auto blocks = call.array<uint32_t>(2, "blocks");
  const uint32_t ttl_ms = call.u32(3, "ttlMs");
  const uint32_t peer = call.u32(4, "peer");
  if (call.failed()) return {};
  std::string error;
  const int64_t id = agent->agent().lease(pool, blocks, ttl_ms, peer, &error);
  return transfer_result(call, id, std::move(error));
}

Napi::Value MillraceAddon::transfer_release_lease(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint64_t id = call.u64(1, "idLow", "idHigh");
  if (call.failed()) return {};
  return transfer_result(call, agent->agent().release_lease(id), {});
}

template <kv::Status (kv::Agent::*method)(uint32_t, uint64_t)>
Napi::Value MillraceAddon::transfer_peer_lease(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint32_t peer = call.u32(1, "peer");
  const uint64_t lease = call.u64(2, "leaseLow", "leaseHigh");
  if (call.failed()) return {};
  return transfer_result(call, (agent->agent().*method)(peer, lease), {});
}

template Napi::Value MillraceAddon::transfer_peer_lease<&kv::Agent::hold_lease>(Call&);
template Napi::Value MillraceAddon::transfer_peer_lease<&kv::Agent::drop_lease>(Call&);

Napi::Value MillraceAddon::transfer_stats(Call& call) {
  TransferAgent* agent = transfer_of(call);
  if (call.failed()) return {};
  return call.result(agent->agent().stats());
}

}  // namespace millrace
