// One call from JavaScript: its checked arguments, its failure or its result. The first failure leaves a pending
// TypeError or RangeError that names the argument; from then on every reader gives 0 or an empty array and throws
// nothing more, so that a function reads all it needs, asks `failed()` and returns.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace millrace {

class Call {
 public:
  Call(napi_env env, napi_callback_info info);

  Napi::Value argument(size_t index) const { return {env_, values_[index]}; }
  // An integer in [0, 2^32).
  uint32_t u32(size_t index, const char* name);
  // Two of them, the low word first.
  uint64_t u64(size_t index, const char* low_name, const char* high_name);
  // The memory of an Int32Array, Uint32Array or Uint8Array; valid until the call returns to JavaScript.
  template <class Word>
  std::span<Word> array(size_t index, const char* name);
  // The same over a SharedArrayBuffer: it cannot be detached or shrink while a reference to the array is held.
  template <class Word>
  std::span<Word> shared_array(size_t index, const char* name);
  // A Uint32Array of at least `count` entries of `words` words each.
  uint32_t* list(size_t index, const char* name, uint32_t count, uint32_t words);

  // A string of at most `bytes_max` bytes of UTF-8.
  std::string text(size_t index, const char* name, size_t bytes_max);
  void require_function(size_t index, const char* name);

  // Throws RangeError `<name> <rule>` unless the condition holds.
  void require(bool holds, const char* name, const char* rule) {
    if (!holds) fail<Napi::RangeError>(name, rule);
  }
  bool failed() const { return failed_; }
  Napi::Env env() const { return env_; }

  // Every number of the core is below 2^53.
  Napi::Value result(int64_t number) const { return Napi::Number::New(env_, static_cast<double>(number)); }
  Napi::Value result(const std::string& text) const { return Napi::String::New(env_, text); }

 private:
  // The most that a function of the addon takes.
  static constexpr size_t kArguments = 13;

  template <class Error>
  void fail(const char* name, const char* rule);

  Napi::Env env_;
  // Node-API fills the places of missing arguments with undefined, which no reader accepts.
  napi_value values_[kArguments];
  bool failed_ = false;
};

}  // namespace millrace
