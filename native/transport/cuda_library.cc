// Opens libcuda.so.1 and finds its functions. See cuda_library.h.
#include "cuda_library.h"

#include <dlfcn.h>

namespace millrace::kv::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

// Of cuGetProcAddress, whose second form came with CUDA 12 and also says why.
using GetProcAddress = Result (*)(const char*, void**, int, uint64_t);
using GetProcAddress2 = Result (*)(const char*, void**, int, uint64_t, int*);

struct Finder {
  void* handle = nullptr;
  GetProcAddress2 newer = nullptr;
  GetProcAddress older = nullptr;

  // By version first, as a name alone may come to mean another signature in a later driver.
  void* find(const char* name, int version, const char* symbol) const {
    void* found = nullptr;
    int query = 0;
    if (newer != nullptr && newer(name, &found, version, 0, &query) == kSuccess && found != nullptr) return found;
    if (newer == nullptr && older != nullptr && older(name, &found, version, 0) == kSuccess && found != nullptr) return found;
    return dlsym(handle, symbol);
  }
};

struct Opened {
  Api api;
  bool is_usable = false;
  std::string error;
};

template <class Pointer>
void take(Pointer* out, void* found) {
  *out = reinterpret_cast<Pointer>(found);
}

bool find_all(const Finder& finder, Api* api, std::string* error) {
#define MILLRACE_CUDA_FIND(required, name, version, symbol, arguments)                                \
  take(&api->name, finder.find(#name, version, symbol));                                              \
  if (required && api->name == nullptr) {                                                             \
    *error = std::string(kLibrary) + " has no " #name ": the driver is older than CUDA 11.4 needs";   \
    return false;                                                                                     \
  }
  MILLRACE_CUDA_FUNCTIONS(MILLRACE_CUDA_FIND)
#undef MILLRACE_CUDA_FIND
  return true;
}

Opened open_library() {
  Opened opened;
  Finder finder;
  finder.handle = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (finder.handle == nullptr) {
    const char* const why = dlerror();
    opened.error = why == nullptr ? kLibrary : why;
    return opened;
  }
  take(&finder.newer, dlsym(finder.handle, "cuGetProcAddress_v2"));
  take(&finder.older, dlsym(finder.handle, "cuGetProcAddress"));
  if (!find_all(finder, &opened.api, &opened.error)) return opened;
  const Result initialised = opened.api.cuInit(0);
  int devices = 0;
  const Result counted = initialised == kSuccess ? opened.api.cuDeviceGetCount(&devices) : kSuccess;
  if (initialised != kSuccess) opened.error = error_words(opened.api, "cuInit", initialised);
  else if (counted != kSuccess) opened.error = error_words(opened.api, "cuDeviceGetCount", counted);
  else if (devices == 0) opened.error = "the driver has no device";
  opened.is_usable = opened.error.empty();
  return opened;
}

}  // namespace

const Api* library(std::string* error) {
  static const Opened opened = open_library();
  if (opened.is_usable) return &opened.api;
  *error = opened.error;
  return nullptr;
}

std::string error_words(const Api& api, const char* doing, Result result) {
  const char* name = nullptr;
  if (api.cuGetErrorName(result, &name) != kSuccess || name == nullptr) {
    return std::string(doing) + ": CUDA error " + std::to_string(result);
  }
  return std::string(doing) + ": " + name;
}

}  // namespace millrace::kv::cuda
