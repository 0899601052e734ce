// The addon as one JS thread sees it: one MillraceAddon per environment (its instance data), so that every thread of
// a process can load it. Each method is a function of `Addon` in src/runtime/addon.ts, which says what it means:
// check every argument, call the core, return. It is built without C++ exceptions, so none can cross into the runtime;
// only the wake-up of a transfer agent calls JavaScript, and from the event loop, so no method meets a caller's.
#pragma once

#include <napi.h>

#include "attachments.h"
#include "call.h"

namespace millrace {

class MillraceAddon : public Napi::Addon<MillraceAddon> {
 public:
  MillraceAddon(Napi::Env env, Napi::Object exports);

 private:
  // An export. Not InstanceMethod: its CallbackInfo has room for six arguments and takes the heap and a second
  // Node-API call for more, which made `reserve` (nine) 29 % slower.
  template <Napi::Value (MillraceAddon::*method)(Call&)>
  static AddonProp function(const char* name) {
    napi_property_descriptor property{};
    property.utf8name = name;
    property.method = [](napi_env env, napi_callback_info info) -> napi_value {
      Call call(env, info);
      return (Napi::Env(env).GetInstanceData<MillraceAddon>()->*method)(call);
    };
    return property;
  }

  Napi::Value hash_blocks(Call& call);
  Napi::Value attach_frames(Call& call);
  Napi::Value scan_frames(Call& call);
  Napi::Value attach_load(Call& call);
  Napi::Value reserve(Call& call);
  Napi::Value attach_event_tables(Call& call);
  Napi::Value decode_events(Call& call);
  Napi::Value detach(Call& call);

  // The prefix index (index_functions.cc).
  template <class Kind>
  Napi::Value attach_index(Call& call);
  Napi::Value index_holder(Call& call);
  Napi::Value index_store(Call& call);
  Napi::Value index_remove(Call& call);
  Napi::Value index_translate(Call& call);
  Napi::Value index_predict(Call& call);
  Napi::Value index_expire(Call& call);
  Napi::Value index_sweep(Call& call);
  Napi::Value index_stats(Call& call);
  Napi::Value index_lookup(Call& call);
  Napi::Value attach_lookup_arrays(Call& call);
  Napi::Value index_lookup_attached(Call& call);

  // Transfer agents (transfer_functions.cc).
  Napi::Value transfer_probe(Call& call);
  Napi::Value transfer_error(Call& call);
  Napi::Value transfer_open(Call& call);
  Napi::Value transfer_pool_create(Call& call);
  Napi::Value transfer_pool_wrap(Call& call);
  Napi::Value transfer_pool_device(Call& call);
  Napi::Value transfer_pool_buffer(Call& call);
  Napi::Value transfer_pool_page_bytes(Call& call);
  Napi::Value transfer_pool_close(Call& call);
  Napi::Value transfer_metadata(Call& call);
  Napi::Value transfer_add_peer(Call& call);
  Napi::Value transfer_remove_peer(Call& call);
  Napi::Value transfer_submit(Call& call);
  Napi::Value transfer_cancel(Call& call);
  Napi::Value transfer_notify(Call& call);
  Napi::Value transfer_poll(Call& call);
  Napi::Value transfer_lease(Call& call);
  Napi::Value transfer_release_lease(Call& call);
  template <kv::Status (kv::Agent::*method)(uint32_t, uint64_t)>
  Napi::Value transfer_peer_lease(Call& call);
  Napi::Value transfer_stats(Call& call);

  // Ports of transfer agents (port_functions.cc).
  Napi::Value transfer_port_create(Call& call);
  Napi::Value transfer_port_close(Call& call);
  Napi::Value transfer_port_open(Call& call);
  Napi::Value transfer_port_kick(Call& call);
  Napi::Value transfer_port_wait(Call& call);
  Napi::Value transfer_port_hold(Call& call);
  Napi::Value transfer_port_pool(Call& call);

  // Block tables of their pools (block_functions.cc).
  Napi::Value blocks_reserve(Call& call);
  Napi::Value blocks_fill(Call& call);
  Napi::Value blocks_commit(Call& call);
  Napi::Value blocks_pin(Call& call);
  Napi::Value blocks_match(Call& call);
  Napi::Value blocks_expire(Call& call);
  Napi::Value blocks_stats(Call& call);
  template <kv::Status (kv::BlockTable::*method)(uint32_t, uint32_t)>
  Napi::Value each_block(Call& call);

  // The agent of argument 0, and the table of the pool in argument 1, or nullptr with a pending exception.
  TransferAgent* transfer_of(Call& call);
  PortUser* port_of(Call& call);
  kv::BlockTable* table_of(Call& call);
  // A status, or an id that is a status where it is below zero; the words are kept for transfer_error.
  Napi::Value transfer_result(Call& call, kv::Status status, std::string error);
  Napi::Value transfer_result(Call& call, int64_t id, std::string error);

  // The index of argument 0, or nullptr with a pending exception.
  template <class Kind>
  Kind* index_of(Call& call);
  void require_place(Call& call) const;

  Attachments attachments_;
  std::string transfer_error_;
};

}  // namespace millrace
