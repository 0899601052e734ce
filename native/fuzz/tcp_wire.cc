// The parsers of the tcp transport as a target of libFuzzer, where there is clang; the corpus is in tcp_wire/:
// clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -Inative/transfer -Inative/transport native/fuzz/tcp_wire.cc
// native/transport/tcp_wire.cc native/transfer/{crc32c,layout,status}.cc
#include "tcp_wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  millrace::kv::fuzz::parse_tcp(bytes, size);
  return 0;
}
