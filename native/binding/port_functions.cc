// The addon's functions of transfer ports: see src/runtime/transfer-addon.ts.
#include <string>

#include "addon.h"
#include "millrace/port_descriptor.h"

namespace millrace {
namespace {

// A thread that blocks can be terminated when it comes back.
constexpr uint32_t kWaitMsMax = 1000;

}  // namespace

PortUser* MillraceAddon::port_of(Call& call) {
  auto* user = attachments_.find<std::unique_ptr<PortUser>>(call.u32(0, "handle"));
  call.require(user != nullptr, "handle", "is not one that transferPortOpen gave to this thread");
  return user == nullptr ? nullptr : user->get();
}

Napi::Value MillraceAddon::transfer_port_create(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const auto words = call.shared_array<uint32_t>(1, "words");
  const kv::PortShape shape{call.u32(2, "entries"), call.u32(3, "arenaWords")};
  call.require(shape.words() != 0, "entries and arenaWords", "must be those of a port");
  call.require(words.size() == shape.words(), "words", "must be as many as the port takes");
  call.require(reinterpret_cast<uintptr_t>(words.data()) % 64 == 0, "words", "must begin on a cache line");
  if (call.failed()) return {};
  uint32_t number = 0;
  std::string error;
  const kv::Status status =
      agent->ports().add(agent->agent(), call.argument(1), words.data(), shape, &number, &error);
  if (status != kv::Status::kOk) return transfer_result(call, status, std::move(error));
  return call.result(number);
}

Napi::Value MillraceAddon::transfer_port_close(Call& call) {
  TransferAgent* agent = transfer_of(call);
  const uint32_t port = call.u32(1, "port");
  if (call.failed()) return {};
  // One that is over has been let go of.
  agent->ports().close(port);
  return {};
}

Napi::Value MillraceAddon::transfer_port_open(Call& call) {
  const uint32_t number = call.u32(0, "port");
  const auto words = call.shared_array<uint32_t>(1, "words");
  call.require_function(2, "wake");
  require_place(call);
  if (call.failed()) return {};
  std::shared_ptr<kv::Port> port = find_port(number);
  if (port == nullptr)
    return transfer_result(call, kv::Status::kNotFound, "port " + std::to_string(number) + " is not in this process");
  if (port->words() != words.data() || port->shape().words() != words.size())
    return transfer_result(call, kv::Status::kNotAllowed, "this is not the memory of port " + std::to_string(number));
  std::unique_ptr<PortUser> user;
  std::string error;
  const kv::Status status = PortUser::open(call.env(), std::move(port), call.argument(2), &user, &error);
  if (status != kv::Status::kOk) return transfer_result(call, status, std::move(error));
  return call.result(attachments_.add(std::move(user), {call.argument(1)}));
}

Napi::Value MillraceAddon::transfer_port_kick(Call& call) {
  PortUser* user = port_of(call);
  if (!call.failed()) user->port().kick();
  return {};
}

Napi::Value MillraceAddon::transfer_port_wait(Call& call) {
  PortUser* user = port_of(call);
  const uint32_t expected = call.u32(1, "expected");
  const uint32_t timeout_ms = call.u32(2, "timeoutMs");
  call.require(timeout_ms <= kWaitMsMax, "timeoutMs", "must be at most 1000");
  if (!call.failed()) user->port().wait(expected, timeout_ms);
  return {};
}

Napi::Value MillraceAddon::transfer_port_hold(Call& call) {
  PortUser* user = port_of(call);
  const bool is_held = call.u32(1, "isHeld") != 0;
  if (!call.failed()) user->hold(is_held);
  return {};
}

Napi::Value MillraceAddon::transfer_port_pool(Call& call) {
  PortUser* user = port_of(call);
  const uint32_t pool = call.u32(1, "pool");
  if (call.failed()) return {};
  kv::Status status;
  std::string error;
  const napi_value buffer = user->map_pool(pool, &status, &error);
  if (buffer == nullptr) return transfer_result(call, status, std::move(error));
  return {call.env(), buffer};
}

}  // namespace millrace
