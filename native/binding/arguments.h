// Reads and checks the arguments of one Node-API call. Every failure leaves a pending TypeError or RangeError that
// names the argument, and the reader says false; a binding function then returns nullptr at once.
#pragma once

#include <node_api.h>

#include <cstddef>
#include <cstdint>

namespace millrace {

// A view of a JavaScript typed array; valid until the call returns to JavaScript.
template <class Word>
struct WordArray {
  Word* words = nullptr;
  size_t length = 0;
  // The memory is a SharedArrayBuffer: it cannot be detached or shrink while a reference to the array is held.
  bool shared = false;
};

class Arguments {
 public:
  static constexpr size_t kMax = 9;

  Arguments(napi_env env, napi_callback_info info);

  napi_env env() const { return env_; }
  napi_value value(size_t index) const { return values_[index]; }

  // An integer in [0, 2^32).
  bool u32(size_t index, const char* name, uint32_t* out);
  bool int32_array(size_t index, const char* name, WordArray<int32_t>* out);
  bool uint32_array(size_t index, const char* name, WordArray<uint32_t>* out);
  bool uint8_array(size_t index, const char* name, WordArray<uint8_t>* out);

  // Throws RangeError `<name> <rule>`; always false, to be returned.
  bool range_error(const char* name, const char* rule);

 private:
  bool type_error(const char* name, const char* rule);
  template <class Word>
  bool typed_array(size_t index, const char* name, napi_typedarray_type wanted, const char* rule,
                   WordArray<Word>* out);

  napi_env env_;
  // Node-API fills the places of missing arguments with undefined, which no reader accepts.
  napi_value values_[kMax];
};

}  // namespace millrace
