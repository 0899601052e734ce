// Runs the core under the address and undefined-behaviour sanitizers: every random and damaged input lies in a buffer
// of exactly its size, so that one byte read or written outside of it ends the run. Built and run by run.mjs.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "block_hash.h"
#include "event_random.h"
#include "frame_parser.h"
#include "frame_scan.h"
#include "index_random.h"
#include "millrace/frame_descriptor.h"
#include "millrace/load_descriptor.h"
#include "reserve.h"

namespace {

using millrace::kFrameIdsMax;
using millrace::kFrameTableWords;
using millrace::kScanHeaderConsumed;
using millrace::kScanHeaderFrames;

const char* const kFrames[] = {
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\\\"b\\\\\"},\"finish_reason\":null,\"token_ids\":[1,4294967295]}]}\n\n",
    "data:{\"choices\":[],\"usage\":{\"prompt_tokens\":1},\"error\":{\"message\":\"}]\"}}\r\n\r\n",
    "event: x\rdata: {\"a\":[[[{\"b\":[true,false,null,-1.5e9]}]]],\"choices\":[{\"text\":\"\"},{}]}\r\r",
    ": note\n\n",
    "data: [DONE]\n\n",
};
const char kSyntax[] = "\"\\{}[],:\n\r 0n-dtf";

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::abort();
}

std::string random_stream(std::mt19937& random) {
  std::string stream;
  for (uint32_t n = random() % 5; n > 0; n--) stream += kFrames[random() % std::size(kFrames)];
  for (uint32_t n = random() % 4; n > 0 && !stream.empty(); n--) {
    char& at = stream[random() % stream.size()];
    at = random() % 2 == 0 ? kSyntax[random() % (sizeof kSyntax - 1)] : static_cast<char>(random());
  }
  return stream.substr(0, random() % (stream.size() + 1));
}

void scan_exact(const std::string& stream, std::mt19937& random) {
  // Allocations of exactly these sizes: the sanitizer watches both ends.
  const std::unique_ptr<uint8_t[]> bytes(new uint8_t[stream.size()]);
  std::memcpy(bytes.get(), stream.data(), stream.size());
  const std::vector<int32_t> fresh(kFrameTableWords);
  std::vector<int32_t> table(fresh);
  std::vector<uint32_t> ids(kFrameIdsMax);
  const auto to = static_cast<int32_t>(stream.size());
  const auto from = static_cast<int32_t>(random() % (stream.size() + 1));
  millrace::scan_frames(bytes.get(), from, to, table.data(), ids.data());
  const int32_t consumed = table[kScanHeaderConsumed];
  check(consumed >= 0 && consumed <= to - from, "consumed lies inside the range");
  check(table[kScanHeaderFrames] >= 0, "frames is a count");
}

// The JSON alone, with nothing behind it: a read past its end leaves the buffer at once.
void parse_exact(const std::string& stream) {
  const size_t json = stream.find('{');
  if (json == std::string::npos) return;
  const size_t length = stream.find_first_of("\r\n", json) - json;
  const std::string data = stream.substr(json, length);
  const std::unique_ptr<uint8_t[]> bytes(new uint8_t[data.size()]);
  std::memcpy(bytes.get(), data.data(), data.size());
  std::vector<uint32_t> ids(kFrameIdsMax);
  std::vector<int32_t> row(millrace::kFrameWords);
  millrace::FrameParser parser(bytes.get(), ids.data());
  const bool whole = parser.parse(0, static_cast<int32_t>(data.size()), row.data());
  check(whole == ((row[millrace::kFrameFlags] & millrace::kFrameFlagMalformed) == 0), "the flag says what parse says");
}

void scan_full(std::mt19937& random) {
  std::string stream;
  for (int n = 0; n < 600; n++) stream += ":\n\n";
  scan_exact(stream, random);
  std::string ids = "data: {\"choices\":[{\"token_ids\":[1";
  for (uint32_t n = 0; n < kFrameIdsMax + 5; n++) ids += ",7";
  scan_exact(ids + "]}]}\n\n", random);
}

void hash_exact(std::mt19937& random) {
  const uint32_t block_size = 1 + random() % 80;
  const uint32_t blocks = random() % 10;
  const uint32_t media_count = random() % 4;
  const std::vector<uint32_t> ids(size_t{block_size} * blocks, random());
  std::vector<uint32_t> media(size_t{media_count} * millrace::kBlockMediaWords);
  for (uint32_t i = 0; i < media_count; i++) media[size_t{i} * millrace::kBlockMediaWords] = i * (random() % 2);
  std::vector<uint32_t> sequence_hashes(blocks * 2);
  const uint64_t parent = random();
  millrace::hash_blocks({ids.data(), block_size, blocks, media.data(), media_count}, {random(), random()},
                        random() % 2 == 0 ? nullptr : &parent, sequence_hashes.data());
}

void reserve_exact(std::mt19937& random) {
  const uint32_t entries = 1 + random() % 8;
  std::vector<uint32_t> table(millrace::kLoadLineWords * 2);
  std::vector<uint32_t> ledger(millrace::kLedgerEntryWords * entries);
  const millrace::LoadSegments segments{table.data(), ledger.data(), 2, entries};
  for (uint32_t n = 0; n < entries; n++) {
    const millrace::ReserveRequest request{0, entries, static_cast<uint32_t>(random()), n % 2, 0, 3, 2, 1};
    check(millrace::reserve(segments, request) > 0, "an entry was free");
  }
  const millrace::ReserveRequest one_more{0, entries, 0, 0, 0, 3, 2, 1};
  check(millrace::reserve(segments, one_more) == millrace::kReserveFull, "the ledger is full");
}

}  // namespace

int main(int, char** argv) {
  std::mt19937 random(static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)));
  const long cases = std::strtol(argv[2], nullptr, 10);
  for (long i = 0; i < cases; i++) {
    const std::string stream = random_stream(random);
    scan_exact(stream, random);
    parse_exact(stream);
  }
  scan_full(random);
  event_random(cases, random);
  for (int i = 0; i < 2000; i++) hash_exact(random);
  for (int i = 0; i < 2000; i++) reserve_exact(random);
  for (long i = 0; i < cases / 10000 + 1; i++) index_random(5000, random);
  std::printf("%ld streams without a finding\n", cases);
}
