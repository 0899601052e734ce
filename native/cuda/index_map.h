// Which bytes a GPU thread copies (K3): the index maths of the kernels, shared by native/cuda/kernels.cu and the C++ that
// launches them, so that a CPU can check it against the plans of native/transfer. A launch is told what of a block goes
// where (pieces, as Transform keeps them) and two lists of block numbers, never a table of pointers: one kernel so gathers,
// scatters, permutes NHD to HND and back, and splits or merges the heads of tensor-parallel ranks.
//
//     unit = ((piece * block_count + block) * rows + row) * chunks + chunk       at most `chunk_bytes` of one row
//
// The order of units is the order of the runs that Transform::lower makes of the same blocks.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#define MILLRACE_BOTH __host__ __device__ __forceinline__
#else
#define MILLRACE_BOTH inline
#endif

namespace millrace::kv {

// `rows` rows of `length` bytes in every block: row r of block b from source + b * source_block_stride + r * source_stride.
struct KernelPiece {
  uint64_t source;
  uint64_t target;
  uint64_t source_block_stride;
  uint64_t target_block_stride;
  uint64_t source_stride;
  uint64_t target_stride;
};

// One launch, passed by value. Addresses are those of the device that runs it; all pieces have rows of one shape.
struct KernelJob {
  uint64_t source_base;
  uint64_t target_base;
  uint64_t pieces;         // of KernelPiece[piece_count]
  uint64_t source_blocks;  // of uint32_t[block_count]
  uint64_t target_blocks;
  uint64_t length;
  uint32_t block_count;
  uint32_t rows;
  uint32_t chunk_bytes;
  uint32_t chunks;  // of a row: length / chunk_bytes, rounded up
  uint32_t units;   // below 2^31
  uint32_t team;    // threads that share a unit: a power of two up to 32
};

// A digest per unit, of one of the two sides.
struct DigestJob {
  KernelJob job;
  uint64_t digests;  // of uint32_t[units]
  uint32_t of_target;
  uint32_t reserved;
};

struct UnitSpan {
  uint64_t source;
  uint64_t target;
  uint32_t length;
};

MILLRACE_BOTH UnitSpan span_of(const KernelJob& job, const KernelPiece* pieces, const uint32_t* source_blocks,
                               const uint32_t* target_blocks, uint32_t unit) {
  const uint32_t chunk = unit % job.chunks;
  uint32_t rest = unit / job.chunks;
  const uint32_t row = rest % job.rows;
  rest /= job.rows;
  const uint32_t block = rest % job.block_count;
  const KernelPiece& piece = pieces[rest / job.block_count];
  const uint64_t begin = uint64_t{chunk} * job.chunk_bytes;
  const uint64_t left = job.length - begin;
  return {job.source_base + piece.source + source_blocks[block] * piece.source_block_stride + row * piece.source_stride + begin,
          job.target_base + piece.target + target_blocks[block] * piece.target_block_stride + row * piece.target_stride + begin,
          left < job.chunk_bytes ? static_cast<uint32_t>(left) : job.chunk_bytes};
}

// The widest word, 16, 8, 4 or 1 bytes, that both sides of this unit are aligned to. Of each unit by itself: blocks of one
// launch may be aligned differently.
MILLRACE_BOTH uint32_t word_bytes(const UnitSpan& span) {
  const uint64_t bits = span.source | span.target;
  return (bits & 15) == 0 ? 16 : (bits & 7) == 0 ? 8 : (bits & 3) == 0 ? 4 : 1;
}

// One step of CRC-32C (Castagnoli, reflected) over `bits` bits that have been put into the low end of `crc`: without a
// table, as arithmetic is what a GPU has most of.
MILLRACE_BOTH uint32_t crc_step(uint32_t crc, uint32_t bits) {
#if defined(__CUDACC__)
#pragma unroll 8
#endif
  for (uint32_t i = 0; i < bits; i++) crc = (crc >> 1) ^ (0x82f6'3b78u & (0u - (crc & 1u)));
  return crc;
}

}  // namespace millrace::kv
