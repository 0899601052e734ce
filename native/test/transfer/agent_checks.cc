// The memory transport runs the contract; metadata is damaged at random; checksums against the definition.
#include "check.h"

#include "crc32c.h"
#include "memory_transport.h"
#include "metadata.h"
#include "node.h"
#include "transport_contract.h"

namespace millrace::kv::test {
namespace {

uint32_t crc32c_by_bits(const std::vector<uint8_t>& bytes) {
  uint32_t crc = ~0u;
  for (const uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f6'3b78u : 0);
  }
  return ~crc;
}

Metadata random_metadata(std::mt19937& random) {
  Metadata metadata;
  for (uint8_t& byte : metadata.uuid) byte = static_cast<uint8_t>(random());
  metadata.epoch = random();
  metadata.name = std::string(pick(random, 0, 20), 'n');
  std::string error;
  for (uint32_t i = pick(random, 0, 3); i > 0; i--) {
    PoolDescription pool;
    pool.id = i;
    pool.has_generations = random() % 2 == 0;
    check(Layout::opaque(512, 512, pick(random, 1, 9), 1 << 16, &pool.layout, &error) == Status::kOk, error);
    metadata.pools.push_back(pool);
  }
  for (uint32_t i = pick(random, 0, 3); i > 0; i--)
    metadata.transports.push_back({"t" + std::to_string(i), std::vector<uint8_t>(pick(random, 0, 40), 1)});
  return metadata;
}

}  // namespace

void crc_random(std::mt19937& random, uint32_t cases) {
  const uint8_t digits[] = {'1', '2', '3', '4', '5', '6', '7', '8', '9'};
  check(crc32c(0, digits, 9) == 0xe306'9283u, "the check value of the polynomial");
  for (uint32_t i = 0; i < cases; i++) {
    std::vector<uint8_t> bytes(random() % (i % 16 == 0 ? 8192 : 64));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    const uint32_t expected = crc32c_by_bits(bytes);
    const size_t cut = random() % (bytes.size() + 1);
    const uint32_t first = crc32c(0, bytes.data(), cut);
    check(crc32c(0, bytes.data(), bytes.size()) == expected, "by instruction");
    check(crc32c_portable(0, bytes.data(), bytes.size()) == expected, "by tables");
    check(crc32c(first, bytes.data() + cut, bytes.size() - cut) == expected, "in two parts");
  }
}

// Bytes of a stranger: whatever they are, the answer is a status with words, and what is accepted is a blob again.
void metadata_random(std::mt19937& random, uint32_t cases) {
  uint32_t accepted = 0, mismatched = 0, invalid = 0;
  std::string error;
  for (uint32_t i = 0; i < cases; i++) {
    std::vector<uint8_t> blob = random_metadata(random).encode();
    const std::vector<uint8_t> whole = blob;
    Metadata out;
    check(Metadata::decode(blob, &out, &error) == Status::kOk, error);
    check(out.encode() == whole, "there and back");
    for (uint32_t change = random() % 4; change > 0; change--) {
      switch (random() % 3) {
        case 0: blob[random() % blob.size()] = static_cast<uint8_t>(random()); break;
        case 1: blob.resize(1 + random() % blob.size()); break;
        default: blob.insert(blob.begin() + static_cast<ptrdiff_t>(random() % blob.size()), pick(random, 1, 9), 0xff);
      }
    }
    // Half of them with a checksum that is right, so that what lies behind it is reached.
    if (random() % 2 == 0 && blob.size() > 4) {
      const uint32_t crc = crc32c(0, blob.data(), blob.size() - 4);
      std::memcpy(blob.data() + blob.size() - 4, &crc, sizeof(crc));
    }
    error.clear();
    const Status status = Metadata::decode(blob, &out, &error);
    check(status == Status::kOk || !error.empty(), "says why");
    accepted += status == Status::kOk;
    mismatched += status == Status::kMismatch;
    invalid += status == Status::kInvalid;
  }
  check(cases < 1000 || (accepted > 0 && mismatched > 0 && invalid > 0), "each answer was given");
}

void memory_contract() {
  MemoryOptions stuck;
  stuck.faults.drop = 10'000;
  contract_suite({[] { return memory_transport({}); }, [stuck] { return memory_transport(stuck); }});
}

}  // namespace millrace::kv::test
