// The kernels of the cuda transport (K3), compiled ahead by native/cuda/build.mjs into kernels.inc. They need no barrier and
// no shared memory, so that the driver double of the tests runs this very file on a CPU, one thread after another. Which
// bytes a thread copies is in index_map.h; who launches them, in native/transport/cuda_move.cc.
#include "index_map.h"

namespace millrace::kv {
namespace {

#if defined(__CUDACC__)
#define MILLRACE_ALIAS
#define MILLRACE_ROLLED _Pragma("unroll 1")
#else
// On a CPU these words are laid over bytes of any type.
#define MILLRACE_ALIAS __attribute__((__may_alias__))
#define MILLRACE_ROLLED
#endif

struct alignas(16) Word16 {
  uint64_t low, high;
} MILLRACE_ALIAS;
typedef uint64_t MILLRACE_ALIAS Word8;
typedef uint32_t MILLRACE_ALIAS Word4;
typedef uint8_t Word1;

// Four words of each thread are on their way at once: what hides the latency of a far memory.
template <class Word>
__device__ void copy_words(uint64_t source, uint64_t target, uint32_t count, uint32_t lane, uint32_t team) {
  const Word* from = reinterpret_cast<const Word*>(source);
  Word* to = reinterpret_cast<Word*>(target);
  uint32_t i = lane;
  for (; i + 3 * team < count; i += 4 * team) {
    const Word a = from[i];
    const Word b = from[i + team];
    const Word c = from[i + 2 * team];
    const Word d = from[i + 3 * team];
    to[i] = a;
    to[i + team] = b;
    to[i + 2 * team] = c;
    to[i + 3 * team] = d;
  }
MILLRACE_ROLLED
  for (; i < count; i += team) to[i] = from[i];
}

__device__ void copy_bytes(uint64_t source, uint64_t target, uint32_t count, uint32_t lane, uint32_t team) {
MILLRACE_ROLLED
  for (uint32_t i = lane; i < count; i += team) reinterpret_cast<Word1*>(target)[i] = reinterpret_cast<const Word1*>(source)[i];
}

__device__ void copy_span(const UnitSpan& span, uint32_t lane, uint32_t team) {
  const uint32_t width = word_bytes(span);
  const uint32_t words = width == 1 ? 0 : span.length / width;
  if (width == 16) copy_words<Word16>(span.source, span.target, words, lane, team);
  else if (width == 8) copy_words<Word8>(span.source, span.target, words, lane, team);
  else copy_words<Word4>(span.source, span.target, words, lane, team);
  const uint32_t done = words * width;
  copy_bytes(span.source + done, span.target + done, span.length - done, lane, team);
}

__device__ UnitSpan span_in(const KernelJob& job, uint32_t unit) {
  return span_of(job, reinterpret_cast<const KernelPiece*>(job.pieces), reinterpret_cast<const uint32_t*>(job.source_blocks),
                 reinterpret_cast<const uint32_t*>(job.target_blocks), unit);
}

}  // namespace

// Any grid of blocks whose size is a multiple of 32 threads.
extern "C" __global__ void __launch_bounds__(256) millrace_copy(const KernelJob job) {
  const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
  const uint32_t teams = gridDim.x * blockDim.x / job.team;
  for (uint32_t unit = thread / job.team; unit < job.units; unit += teams)
    copy_span(span_in(job, unit), thread & (job.team - 1), job.team);
}

// digests[unit] = CRC-32C of the unit's bytes, as crc32c(0, …) of native/transfer counts it. One thread a unit.
extern "C" __global__ void __launch_bounds__(256) millrace_digest(const DigestJob digest) {
  const uint32_t threads = gridDim.x * blockDim.x;
  uint32_t* const out = reinterpret_cast<uint32_t*>(digest.digests);
  for (uint32_t unit = blockIdx.x * blockDim.x + threadIdx.x; unit < digest.job.units; unit += threads) {
    const UnitSpan span = span_in(digest.job, unit);
    const uint64_t at = digest.of_target != 0 ? span.target : span.source;
    uint32_t crc = ~0u;
    uint32_t done = 0;
    if ((at & 3) == 0) {
      const Word4* const words = reinterpret_cast<const Word4*>(at);
      for (; done + 4 <= span.length; done += 4) crc = crc_step(crc ^ words[done / 4], 32);
    }
    const Word1* const bytes = reinterpret_cast<const Word1*>(at);
    for (; done < span.length; done++) crc = crc_step(crc ^ bytes[done], 8);
    out[unit] = ~crc;
  }
}

}  // namespace millrace::kv
