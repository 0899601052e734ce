// CRC-32C by the processor's instruction in three lanes, or by table. See crc32c.h.
#include "crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
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

#endif

}  // namespace

uint32_t crc32c_portable(uint32_t before, const void* start, size_t size) {
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

uint32_t crc32c(uint32_t before, const void* bytes, size_t size) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) return crc32c_instruction(before, bytes, size);
#endif
  return crc32c_portable(before, bytes, size);
}

}  // namespace millrace::kv
