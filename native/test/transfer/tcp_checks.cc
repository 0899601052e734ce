// The tcp transport between agents of one process and between two processes: the contract of all transports, and faults.
#include "check.h"
#include "tcp_transport.h"
#include "transport_contract.h"
#include "transport_faults.h"

namespace millrace::kv::test {
namespace {

TcpOptions many_streams() {
  TcpOptions options;
  options.streams_large = 3;
  options.window_bytes = 1u << 20;
  return options;
}

}  // namespace

void tcp_checks(std::mt19937& random, uint32_t rounds) {
  fault_suite([] { return tcp_transport(many_streams()); }, random, rounds);
  contract_suite({[] { return tcp_transport({}); }, {}});
}

}  // namespace millrace::kv::test
