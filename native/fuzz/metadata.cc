// Metadata of a stranger: what is accepted must be accepted again, with the same meaning, after it was written anew.
// metadata_random in native/test/transfer does as much with any compiler, by damage at random.
#include <cstdlib>
#include <cstring>

#include "crc32c.h"
#include "metadata.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using millrace::kv::Metadata;
  using millrace::kv::Status;
  std::vector<uint8_t> blob(bytes, bytes + size);
  // A checksum that is right, so that what lies behind it is reached.
  if (size >= 4) {
    const uint32_t crc = millrace::kv::crc32c(0, bytes, size - 4);
    std::memcpy(blob.data() + size - 4, &crc, sizeof(crc));
  }
  Metadata first, second;
  std::string error;
  if (Metadata::decode(blob, &first, &error) != Status::kOk) {
    if (error.empty()) std::abort();
    return 0;
  }
  const std::vector<uint8_t> again = first.encode();
  if (Metadata::decode(again, &second, &error) != Status::kOk || second.encode() != again) std::abort();
  return 0;
}
