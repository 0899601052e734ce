// The checked arguments of a call: see call.h. Numbers and arrays are read with one Node-API call each, where napi.h
// makes two to four: they are most of the cost of a short call.
#include "call.h"

#include <cmath>
#include <string>

namespace millrace {
namespace {

template <class Word>
struct ArrayOf;
template <>
struct ArrayOf<int32_t> {
  static constexpr napi_typedarray_type kType = napi_int32_array;
  static constexpr const char* kRule = "must be an Int32Array";
};
template <>
struct ArrayOf<uint32_t> {
  static constexpr napi_typedarray_type kType = napi_uint32_array;
  static constexpr const char* kRule = "must be a Uint32Array";
};
template <>
struct ArrayOf<uint8_t> {
  static constexpr napi_typedarray_type kType = napi_uint8_array;
  static constexpr const char* kRule = "must be a Uint8Array";
};

}  // namespace

Call::Call(napi_env env, napi_callback_info info) : env_(env) {
  size_t count = kArguments;
  napi_get_cb_info(env, info, &count, values_, nullptr, nullptr);
}

template <class Error>
void Call::fail(const char* name, const char* rule) {
  if (failed_) return;
  failed_ = true;
  Error::New(env_, std::string(name) + " " + rule).ThrowAsJavaScriptException();
}

template void Call::fail<Napi::RangeError>(const char*, const char*);

uint32_t Call::u32(size_t index, const char* name) {
  double number = 0;
  if (napi_get_value_double(env_, values_[index], &number) != napi_ok) {
    fail<Napi::TypeError>(name, "must be a number");
    return 0;
  }
  // Written so that NaN fails too.
  if (!(number >= 0 && number <= 4294967295.0) || number != std::floor(number)) {
    fail<Napi::RangeError>(name, "must be an integer in [0, 4294967295]");
    return 0;
  }
  return static_cast<uint32_t>(number);
}

uint64_t Call::u64(size_t index, const char* low_name, const char* high_name) {
  const uint32_t low = u32(index, low_name);
  return uint64_t{u32(index + 1, high_name)} << 32 | low;
}

template <class Word>
std::span<Word> Call::array(size_t index, const char* name) {
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  const napi_status status = napi_get_typedarray_info(env_, values_[index], &type, &length, &data, nullptr, nullptr);
  if (status != napi_ok || type != ArrayOf<Word>::kType) {
    fail<Napi::TypeError>(name, ArrayOf<Word>::kRule);
    return {};
  }
  // A detached array has length 0, so no caller reaches its null pointer.
  return {static_cast<Word*>(data), length};
}

template <class Word>
std::span<Word> Call::shared_array(size_t index, const char* name) {
  const std::span<Word> words = array<Word>(index, name);
  // napi.h knows SharedArrayBuffer only under an experimental flag; the buffer of a typed array is one or the other.
  const bool shared = failed_ || !argument(index).As<Napi::TypedArray>().Buffer().IsArrayBuffer();
  require(shared, name, "must be over a SharedArrayBuffer");
  return words;
}

uint32_t* Call::list(size_t index, const char* name, uint32_t count, uint32_t words) {
  const std::span<uint32_t> list = array<uint32_t>(index, name);
  require(list.size() / words >= count, name, "must hold as many entries as are counted");
  return list.data();
}

std::string Call::text(size_t index, const char* name, size_t bytes_max) {
  size_t bytes = 0;
  if (napi_get_value_string_utf8(env_, values_[index], nullptr, 0, &bytes) != napi_ok) {
    fail<Napi::TypeError>(name, "must be a string");
    return {};
  }
  if (bytes > bytes_max) {
    fail<Napi::RangeError>(name, ("must be at most " + std::to_string(bytes_max) + " bytes long").c_str());
    return {};
  }
  std::string text(bytes, '\0');
  // Writes a terminating zero, for which a std::string has room.
  napi_get_value_string_utf8(env_, values_[index], text.data(), bytes + 1, &bytes);
  return text;
}

void Call::require_function(size_t index, const char* name) {
  if (!argument(index).IsFunction()) fail<Napi::TypeError>(name, "must be a function");
}

template std::span<uint8_t> Call::array(size_t, const char*);
template std::span<uint32_t> Call::array(size_t, const char*);
template std::span<uint8_t> Call::shared_array(size_t, const char*);
template std::span<int32_t> Call::shared_array(size_t, const char*);
template std::span<uint32_t> Call::shared_array(size_t, const char*);

}  // namespace millrace
