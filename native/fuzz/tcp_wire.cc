// The parsers of the tcp transport, one payload at a time; tcp_line.cc has a whole transport.
#include "tcp_wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  millrace::kv::fuzz::parse_tcp(bytes, size);
  return 0;
}
