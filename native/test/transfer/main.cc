// Random tests of the transfer core: `main SEED CASES`. Built by run.mjs, with sanitizers.
#include "check.h"

int main(int, char** argv) {
  const auto seed = static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10));
  const auto cases = static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10));
  std::mt19937 random(seed);
  millrace::kv::test::plan_random(random, cases);
  millrace::kv::test::table_random(random, cases * 10);
  millrace::kv::test::copy_random(random, cases / 10 + 1);
  millrace::kv::test::pool_checks();
  millrace::kv::test::host_transports();
  millrace::kv::test::crc_random(random, cases / 10 + 1);
  millrace::kv::test::metadata_random(random, cases);
  millrace::kv::test::transport_contracts();
  millrace::kv::test::cost_checks(random, cases / 10 + 1);
  millrace::kv::test::lease_checks();
  millrace::kv::test::port_checks(random, cases);
  millrace::kv::test::abort_random(random, cases * 5);
  millrace::kv::test::host_forged();
  millrace::kv::test::tcp_checks(random, cases / 10 + 20);
  millrace::kv::test::tcp_hostile(random, cases * 10);
  std::printf("%u cases without a finding\n", cases);
}
