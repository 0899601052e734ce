// The driver's library, opened at run time (K3). One per process, never closed, as a driver leaves threads behind. Any thread.
#pragma once

#include <string>

#include "../transfer/status.h"
#include "cuda_api.h"

namespace millrace::kv::cuda {

// The functions, after cuInit; null with the reason where there is no driver, no device, or one that lacks a function.
const Api* library(std::string* error);

// "cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY".
std::string error_words(const Api& api, const char* doing, Result result);

// Makes a context the thread's as long as it lives. What is called meanwhile breaks no capture of a graph that another
// thread of the process is at: an engine that captures its model's step would else fail for an allocation or query of ours.
class Current {
 public:
  Current(const Api& api, Context context) : api_(api), result_(api.cuCtxPushCurrent(context)) {
    api_.cuThreadExchangeStreamCaptureMode(&mode_);
  }
  ~Current() {
    api_.cuThreadExchangeStreamCaptureMode(&mode_);
    Context before = nullptr;
    if (result_ == kSuccess) api_.cuCtxPopCurrent(&before);
  }
  Current(const Current&) = delete;

 private:
  const Api& api_;
  Result result_;
  int mode_ = kCaptureRelaxed;
};

}  // namespace millrace::kv::cuda
