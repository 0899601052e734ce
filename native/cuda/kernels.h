// The compiled kernels (K3): kernels.inc, which native/cuda/build.mjs makes of kernels.cu, as a cubin for each architecture
// and one PTX text, which newer drivers compile for architectures that came later.
#pragma once

#include <cstddef>
#include <cstdint>

namespace millrace::kv::cuda {

struct KernelImage {
  int architecture;  // 80 for sm_80
  bool is_ptx;
  size_t bytes;
  const uint64_t* words;
};

#include "kernels.inc"

}  // namespace millrace::kv::cuda
