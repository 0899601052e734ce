// The SSE frame scanner (R5): finds the complete events of an engine's answer and where in each the values lie that an
// adapter needs. The layout of the output is src/engines/frame-descriptor.ts; the rules are written down once, at its
// TypeScript twin src/engines/frame-scanner.ts, and both must give the same words for every input.
#pragma once

#include <cstdint>

namespace millrace {

// Scans bytes [from, to); `to` <= 2^30. Fills the header and rows of `table` (kFrameTableWords) and `ids`
// (kFrameIdsMax). Reads nothing outside the range, whatever the bytes are. Runs on the thread that owns the outputs.
void scan_frames(const uint8_t* bytes, int32_t from, int32_t to, int32_t* table, uint32_t* ids);

}  // namespace millrace
