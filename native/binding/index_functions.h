// The functions of the prefix index as JavaScript sees them; src/runtime/addon.ts says what each means.
#pragma once

#include <node_api.h>

namespace millrace {

// Adds them to the exports of the addon. False with a pending exception when the runtime refuses.
bool export_index_functions(napi_env env, napi_value exports);

}  // namespace millrace
