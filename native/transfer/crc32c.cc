// CRC-32C by carry-less multiplication of 64 bytes at a time, by the processor's instruction in three lanes, or by table.
// See crc32c.h.
#include "crc32c.h"

#include <array>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace millrace::kv {
namespace {

constexpr uint32_t kPolynomial = 0x82f6'3b78;

// tables[k][b]: the effect of byte b followed by k zero bytes.
constexpr std::array<std::array<uint32_t, 256>, 8> make_tables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (uint32_t byte = 0; byte < 256; byte++)
    for (size_t k = 1; k < 8; k++)
      tables[k][byte] = (tables[k - 1][byte] >> 8) ^ tables[0][tables[k - 1][byte] & 0xff];
  return tables;
}

constexpr auto kTables = make_tables();

uint64_t load(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

#if defined(__x86_64__)

// The instruction takes one word each cycle but needs three for its result, so three lanes run side by side; a lane is moved
// over the bytes of the lanes behind it by tables.
constexpr size_t kLaneBytes = 1024;

// shift[k][b]: the effect of byte k of a CRC, with value b, followed by kLaneBytes zero bytes.
constexpr std::array<std::array<uint32_t, 256>, 4> make_shift() {
  std::array<uint32_t, 32> of_bit{};
  for (int bit = 0; bit < 32; bit++) {
    uint32_t crc = 1u << bit;
    for (size_t i = 0; i < kLaneBytes; i++) crc = (crc >> 8) ^ kTables[0][crc & 0xff];
    of_bit[bit] = crc;
  }
  std::array<std::array<uint32_t, 256>, 4> shift{};
  for (int k = 0; k < 4; k++)
    for (uint32_t byte = 0; byte < 256; byte++)
      for (int bit = 0; bit < 8; bit++)
        if ((byte >> bit & 1) != 0) shift[k][byte] ^= of_bit[k * 8 + bit];
  return shift;
}

const auto kShift = make_shift();

uint64_t shifted(uint64_t crc) {
  return kShift[0][crc & 0xff] ^ kShift[1][crc >> 8 & 0xff] ^ kShift[2][crc >> 16 & 0xff] ^ kShift[3][crc >> 24 & 0xff];
}

__attribute__((target("sse4.2"))) uint32_t crc32c_instruction(uint32_t before, const void* start, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(start);
  uint64_t crc = ~before;
  for (; size >= 3 * kLaneBytes; size -= 3 * kLaneBytes, bytes += 3 * kLaneBytes) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (size_t i = 0; i < kLaneBytes; i += 8) {
      crc = _mm_crc32_u64(crc, load(bytes + i));
      second = _mm_crc32_u64(second, load(bytes + kLaneBytes + i));
      third = _mm_crc32_u64(third, load(bytes + 2 * kLaneBytes + i));
    }
    crc = shifted(shifted(crc) ^ second) ^ third;
  }
  for (; size >= 8; size -= 8, bytes += 8) crc = _mm_crc32_u64(crc, load(bytes));
  auto word = static_cast<uint32_t>(crc);
  for (; size > 0; size--, bytes++) word = _mm_crc32_u8(word, *bytes);
  return ~word;
}

// Four registers of 64 bytes are folded over the 256 bytes that follow, so that the multiplier never waits for itself.
constexpr size_t kFoldBytes = 256;
// Memory is asked for so far ahead: what the processor fetches by itself ends with each page.
constexpr size_t kAheadBytes = 2048;

// x to the power `n`, modulo the polynomial, reflected.
constexpr uint32_t power(size_t n) {
  uint32_t value = 0x8000'0000;
  for (; n > 0; n--) value = (value >> 1) ^ ((value & 1) != 0 ? kPolynomial : 0);
  return value;
}

// What moves 16 bytes over `bytes` of message: their first 8 are 64 bits further from the end than their last 8. A product of
// two reflected 64-bit words comes out times x, and a constant in the low half of its word is times x^32: 33 in all.
struct Move {
  uint64_t first, last;
};
constexpr Move move_over(size_t bytes) { return {power(bytes * 8 + 64 - 33), power(bytes * 8 - 33)}; }
constexpr Move kOver256 = move_over(256);
constexpr Move kOver64 = move_over(64);

#define MILLRACE_FOLDS __attribute__((target("avx512f,vpclmulqdq,sse4.2")))

MILLRACE_FOLDS inline __m512i wide(Move by) {
  const auto first = static_cast<int64_t>(by.first), last = static_cast<int64_t>(by.last);
  return _mm512_set4_epi64(last, first, last, first);
}

MILLRACE_FOLDS inline __m512i folded(__m512i value, __m512i by, __m512i next) {
  constexpr int kExclusiveOr = 0x96;
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(value, by, 0x00), _mm512_clmulepi64_epi128(value, by, 0x11), next,
                                   kExclusiveOr);
}

// After V. Gopal and others, "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009: bytes
// are replaced by fewer ones with the same remainder, and the last of them go through the instruction.
MILLRACE_FOLDS uint32_t crc32c_folded(uint32_t before, const void* start, size_t size) {
  if (size < kFoldBytes) return crc32c_instruction(before, start, size);
  const auto* bytes = static_cast<const uint8_t*>(start);
  const __m512i far = wide(kOver256), near = wide(kOver64);
  __m512i a = _mm512_loadu_si512(bytes), b = _mm512_loadu_si512(bytes + 64), c = _mm512_loadu_si512(bytes + 128),
          d = _mm512_loadu_si512(bytes + 192);
  a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(~before))));
  size -= kFoldBytes;
  bytes += kFoldBytes;
  for (; size >= kFoldBytes; size -= kFoldBytes, bytes += kFoldBytes) {
    if (size > kAheadBytes)
      for (size_t i = 0; i < kFoldBytes; i += 64) _mm_prefetch(bytes + kAheadBytes + i, _MM_HINT_T0);
    a = folded(a, far, _mm512_loadu_si512(bytes));
    b = folded(b, far, _mm512_loadu_si512(bytes + 64));
    c = folded(c, far, _mm512_loadu_si512(bytes + 128));
    d = folded(d, far, _mm512_loadu_si512(bytes + 192));
  }
  d = folded(folded(folded(a, near, b), near, c), near, d);
  for (; size >= 64; size -= 64, bytes += 64) d = folded(d, near, _mm512_loadu_si512(bytes));
  uint8_t rest[64];
  _mm512_storeu_si512(rest, d);
  // The instruction takes its start inverted; what was folded has it in already.
  return crc32c_instruction(crc32c_instruction(~0u, rest, sizeof(rest)), bytes, size);
}

#undef MILLRACE_FOLDS

#endif

uint32_t crc32c_tables(uint32_t before, const void* start, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(start);
  uint32_t crc = ~before;
  for (; size >= 8; size -= 8, bytes += 8) {
    const uint64_t word = load(bytes) ^ crc;
    crc = kTables[7][word & 0xff] ^ kTables[6][word >> 8 & 0xff] ^ kTables[5][word >> 16 & 0xff] ^
          kTables[4][word >> 24 & 0xff] ^ kTables[3][word >> 32 & 0xff] ^ kTables[2][word >> 40 & 0xff] ^
          kTables[1][word >> 48 & 0xff] ^ kTables[0][word >> 56];
  }
  for (; size > 0; size--, bytes++) crc = (crc >> 8) ^ kTables[0][(crc ^ *bytes) & 0xff];
  return ~crc;
}

std::vector<Crc32cWay> find_ways() {
  std::vector<Crc32cWay> ways;
#if defined(__x86_64__)
  const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  const bool has_products = __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("vpclmulqdq") != 0;
  if (has_instruction && has_products) ways.push_back({"products", crc32c_folded});
  if (has_instruction) ways.push_back({"instruction", crc32c_instruction});
#endif
  ways.push_back({"tables", crc32c_tables});
  return ways;
}

}  // namespace

std::span<const Crc32cWay> crc32c_ways() {
  static const std::vector<Crc32cWay> ways = find_ways();
  return ways;
}

uint32_t crc32c(uint32_t before, const void* bytes, size_t size) {
  static const auto fastest = crc32c_ways().front().of;
  return fastest(before, bytes, size);
}

}  // namespace millrace::kv
