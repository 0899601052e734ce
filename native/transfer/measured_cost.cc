// Sums that fade, and the least of two windows. See measured_cost.h.
#include "measured_cost.h"

#include <algorithm>
#include <cmath>

namespace millrace::kv {
namespace {

// More would take long to fade; it is more than the transfers that end together.
constexpr double kBytesMost = 4e9;

}  // namespace

double MeasuredCost::faded(uint64_t now_ns) const {
  const uint64_t age = now_ns > noted_ns_ ? now_ns - noted_ns_ : 0;
  return std::exp2(-static_cast<double>(age) / static_cast<double>(kHalfNs));
}

void MeasuredCost::note_small(uint64_t took_ns, uint64_t now_ns) {
  if (now_.count == 0 || now_ns - now_.begun_ns >= kWindowNs) {
    before_ = now_;
    now_ = {now_ns, UINT64_MAX, 0};
  }
  now_.least_ns = std::min(now_.least_ns, took_ns);
  now_.count++;
}

void MeasuredCost::end(uint64_t begun_ns, uint64_t done_ns, uint64_t bytes, bool was_alone) {
  in_flight_--;
  // The time of one that failed counts for those beside it.
  if (bytes == 0) return;
  const uint64_t from = std::max(begun_ns, done_ns_);
  done_ns_ = done_ns;
  const uint64_t served_ns = done_ns > from ? done_ns - from : 0;
  if (bytes < kSmallBytes) {
    if (was_alone) note_small(served_ns, done_ns);
    return;
  }
  const double left = faded(done_ns);
  bytes_ = bytes_ * left + static_cast<double>(bytes);
  seconds_ = seconds_ * left + static_cast<double>(served_ns) / 1e9;
  noted_ns_ = done_ns;
  if (bytes_ <= kBytesMost) return;
  seconds_ *= kBytesMost / bytes_;
  bytes_ = kBytesMost;
}

Cost MeasuredCost::expected(const Cost& said, uint64_t now_ns) const {
  Cost cost = said;
  if (bytes_ * faded(now_ns) >= kBytesLeast) {
    const double rate = bytes_ / std::max(seconds_, 1e-9);
    cost.bytes_per_second = static_cast<uint64_t>(std::clamp(rate, 1.0, 1e18));
  }
  uint64_t least_ns = UINT64_MAX;
  uint32_t count = 0;
  for (const Window& window : {now_, before_}) {
    if (window.count == 0 || now_ns > window.begun_ns + 2 * kWindowNs) continue;
    least_ns = std::min(least_ns, window.least_ns);
    count += window.count;
  }
  if (count >= kSmallLeast) cost.latency_ns = least_ns;
  return cost;
}

}  // namespace millrace::kv
