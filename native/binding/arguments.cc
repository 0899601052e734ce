// The addon's argument readers: see arguments.h.
#include "arguments.h"

#include <cmath>
#include <cstdio>

namespace millrace {

Arguments::Arguments(napi_env env, napi_callback_info info) : env_(env) {
  size_t count = kMax;
  napi_get_cb_info(env, info, &count, values_, nullptr, nullptr);
}

bool Arguments::type_error(const char* name, const char* rule) {
  char message[128];
  std::snprintf(message, sizeof message, "%s %s", name, rule);
  napi_throw_type_error(env_, nullptr, message);
  return false;
}

bool Arguments::range_error(const char* name, const char* rule) {
  char message[128];
  std::snprintf(message, sizeof message, "%s %s", name, rule);
  napi_throw_range_error(env_, nullptr, message);
  return false;
}

bool Arguments::u32(size_t index, const char* name, uint32_t* out) {
  double number = 0;
  if (napi_get_value_double(env_, values_[index], &number) != napi_ok) {
    return type_error(name, "must be a number");
  }
  // Written so that NaN fails too.
  if (!(number >= 0 && number <= 4294967295.0) || number != std::floor(number)) {
    return range_error(name, "must be an integer in [0, 4294967295]");
  }
  *out = static_cast<uint32_t>(number);
  return true;
}

template <class Word>
bool Arguments::typed_array(size_t index, const char* name, napi_typedarray_type wanted, const char* rule,
                            WordArray<Word>* out) {
  napi_typedarray_type type;
  void* data = nullptr;
  napi_value buffer;
  const napi_status status =
      napi_get_typedarray_info(env_, values_[index], &type, &out->length, &data, &buffer, nullptr);
  if (status != napi_ok || type != wanted) return type_error(name, rule);
  // A detached array has length 0, so no caller reaches its null pointer.
  out->words = static_cast<Word*>(data);
  bool unshared = true;
  napi_is_arraybuffer(env_, buffer, &unshared);
  out->shared = !unshared;
  return true;
}

bool Arguments::int32_array(size_t index, const char* name, WordArray<int32_t>* out) {
  return typed_array(index, name, napi_int32_array, "must be an Int32Array", out);
}

bool Arguments::uint32_array(size_t index, const char* name, WordArray<uint32_t>* out) {
  return typed_array(index, name, napi_uint32_array, "must be a Uint32Array", out);
}

bool Arguments::uint8_array(size_t index, const char* name, WordArray<uint8_t>* out) {
  return typed_array(index, name, napi_uint8_array, "must be a Uint8Array", out);
}

}  // namespace millrace
