// The addon as one JS thread sees it: one MillraceAddon per environment (its instance data), so that every thread of
// a process can load it. Each method is a function of `Addon` in src/runtime/addon.ts, which says what it means:
// check every argument, call the core, return. It is built without C++ exceptions, so none can cross into the runtime;
// the addon calls no JavaScript, so none of a caller's can arrive.
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

  // The index of argument 0, or nullptr with a pending exception.
  template <class Kind>
  Kind* index_of(Call& call);
  void require_place(Call& call) const;

  Attachments attachments_;
};

}  // namespace millrace
