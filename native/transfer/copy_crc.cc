// Sums of what is read and of what was written, by carry-less products or by CRC-32C. See copy_crc.h.
#include "copy_crc.h"

#include <algorithm>
#include <cstring>

#include "crc32c.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define MILLRACE_PRODUCTS __attribute__((target("avx2,pclmul,vpclmulqdq,prfchw")))
#endif

namespace millrace::kv {
namespace {

// What the sums take at a time.
constexpr uint64_t kGroupBytes = 128;

}  // namespace

// Whole groups only. `again`, where it is not null, is as long and is added to `written` in the same loop.
struct SumLoops {
  using Sum = CheckedCopy::Sum;
  void (*copy)(uint8_t* target, const uint8_t* source, uint64_t length, const Ahead& ahead, const uint8_t* again,
               Sum* read, Sum* written);
  void (*add)(const uint8_t* bytes, uint64_t length, Sum* sum);

  static const SumLoops* fastest();
  static const SumLoops* by_crc32c();

 private:
#if defined(__x86_64__)
  MILLRACE_PRODUCTS static void copy_products(uint8_t* target, const uint8_t* source, uint64_t length, const Ahead& ahead,
                                              const uint8_t* again, Sum* read, Sum* written);
  MILLRACE_PRODUCTS static void add_products(const uint8_t* bytes, uint64_t length, Sum* sum);
#endif
  static void copy_crc32c(uint8_t* target, const uint8_t* source, uint64_t length, const Ahead&,
                          const uint8_t* again, Sum* read, Sum* written) {
    add_crc32c(source, length, read);
    std::memcpy(target, source, length);
    if (again != nullptr) add_crc32c(again, length, written);
  }
  static void add_crc32c(const uint8_t* bytes, uint64_t length, Sum* sum) {
    sum->lanes[0] = crc32c(static_cast<uint32_t>(sum->lanes[0]), bytes, length);
  }
};

#if defined(__x86_64__)
namespace {

// Of ECMA-182, without x^64; bit i is the factor of x^i, as it is in the products.
constexpr uint64_t kPolynomial = 0x42f0'e1eb'a9ea'3693;

constexpr uint64_t power_of_x(uint32_t exponent) {
  uint64_t value = 1;
  for (; exponent > 0; exponent--) value = (value << 1) ^ ((value >> 63) != 0 ? kPolynomial : 0);
  return value;
}

// A lane holds low + high * x^64. Times x^128, which makes room for the next 16 bytes, it has the same remainder as
// low * (x^128 mod P) + high * (x^192 mod P).
constexpr uint64_t kOfLow = power_of_x(128);
constexpr uint64_t kOfHigh = power_of_x(192);

MILLRACE_PRODUCTS inline __m256i factors() {
  return _mm256_set_epi64x(static_cast<int64_t>(kOfHigh), static_cast<int64_t>(kOfLow), static_cast<int64_t>(kOfHigh),
                           static_cast<int64_t>(kOfLow));
}

MILLRACE_PRODUCTS inline __m256i load(const void* bytes) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(bytes));
}

MILLRACE_PRODUCTS inline void store(void* bytes, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(bytes), value);
}

MILLRACE_PRODUCTS inline __m256i fold(__m256i lanes, __m256i by, __m256i next) {
  const __m256i low = _mm256_clmulepi64_epi128(lanes, by, 0x00);
  const __m256i high = _mm256_clmulepi64_epi128(lanes, by, 0x11);
  return _mm256_xor_si256(_mm256_xor_si256(low, high), next);
}

// The eight lanes in registers.
struct Lanes {
  __m256i a, b, c, d;

  MILLRACE_PRODUCTS explicit Lanes(const uint64_t* lanes)
      : a(load(lanes)), b(load(lanes + 4)), c(load(lanes + 8)), d(load(lanes + 12)) {}
  MILLRACE_PRODUCTS void save(uint64_t* lanes) const {
    store(lanes, a);
    store(lanes + 4, b);
    store(lanes + 8, c);
    store(lanes + 12, d);
  }
  MILLRACE_PRODUCTS void add(__m256i by, const uint8_t* bytes) {
    a = fold(a, by, load(bytes));
    b = fold(b, by, load(bytes + 32));
    c = fold(c, by, load(bytes + 64));
    d = fold(d, by, load(bytes + 96));
  }
};

}  // namespace

void SumLoops::copy_products(uint8_t* target, const uint8_t* source, uint64_t length, const Ahead& ahead,
                             const uint8_t* again, Sum* read, Sum* written) {
  const __m256i by = factors();
  Lanes in(read->lanes);
  Lanes out(written->lanes);
  for (uint64_t at = 0; at < length; at += kGroupBytes) {
    if (at < ahead.length) {
      for (const uint64_t line : {at, at + kLineBytes}) {
        __builtin_prefetch(ahead.source + line);
        __builtin_prefetch(ahead.target + line, 1);
      }
    }
    const __m256i a = load(source + at), b = load(source + at + 32), c = load(source + at + 64), d = load(source + at + 96);
    // The registers that are stored are those that are summed up: the source is read once.
    in.a = fold(in.a, by, a);
    in.b = fold(in.b, by, b);
    in.c = fold(in.c, by, c);
    in.d = fold(in.d, by, d);
    store(target + at, a);
    store(target + at + 32, b);
    store(target + at + 64, c);
    store(target + at + 96, d);
    if (again != nullptr) out.add(by, again + at);
  }
  in.save(read->lanes);
  out.save(written->lanes);
}

void SumLoops::add_products(const uint8_t* bytes, uint64_t length, Sum* sum) {
  const __m256i by = factors();
  Lanes lanes(sum->lanes);
  for (uint64_t at = 0; at < length; at += kGroupBytes) lanes.add(by, bytes + at);
  lanes.save(sum->lanes);
}
#endif

const SumLoops* SumLoops::by_crc32c() {
  static constexpr SumLoops kLoops{copy_crc32c, add_crc32c};
  return &kLoops;
}

const SumLoops* SumLoops::fastest() {
#if defined(__x86_64__)
  static constexpr SumLoops kProducts{copy_products, add_products};
  static const bool has_products = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq");
  if (has_products) return &kProducts;
#endif
  return by_crc32c();
}

CheckedCopy::CheckedCopy(Way way) : loops_(way == Way::kFastest ? SumLoops::fastest() : SumLoops::by_crc32c()) {}

void CheckedCopy::copy(uint8_t* target, const uint8_t* source, uint64_t length, Ahead ahead) {
  for (uint64_t at = 0; at < length;) {
    const uint64_t chunk = std::min(length - at, kChunkBytes);
    copy_chunk(target + at, source + at, chunk, ahead);
    at += chunk;
    const uint64_t fetched = std::min(chunk, ahead.length);
    ahead = {ahead.target + fetched, ahead.source + fetched, ahead.length - fetched};
  }
}

// The last bytes of a chunk that make no group are summed up with zeros behind them, on both sides alike.
void CheckedCopy::copy_chunk(uint8_t* target, const uint8_t* source, uint64_t length, const Ahead& ahead) {
  const uint64_t groups = length / kGroupBytes * kGroupBytes;
  const bool is_in_step = pending_bytes_ == groups && groups > 0;
  if (!is_in_step) settle();
  loops_->copy(target, source, groups, ahead, is_in_step ? pending_ : nullptr, &read_, &written_);
  pending_ = target;
  pending_bytes_ = length;
  if (groups == length) return;
  uint8_t rest[kGroupBytes] = {};
  std::memcpy(rest, source + groups, length - groups);
  loops_->add(rest, kGroupBytes, &read_);
  std::memcpy(target + groups, rest, length - groups);
}

void CheckedCopy::settle() {
  const uint64_t groups = pending_bytes_ / kGroupBytes * kGroupBytes;
  loops_->add(pending_, groups, &written_);
  if (groups < pending_bytes_) {
    uint8_t rest[kGroupBytes] = {};
    std::memcpy(rest, pending_ + groups, pending_bytes_ - groups);
    loops_->add(rest, kGroupBytes, &written_);
  }
  pending_bytes_ = 0;
}

bool CheckedCopy::is_same() {
  settle();
  return std::memcmp(&read_, &written_, sizeof read_) == 0;
}

}  // namespace millrace::kv
