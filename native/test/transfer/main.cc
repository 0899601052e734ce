// Random tests of the transfer core: `main SEED CASES [GROUP]`, all of them or one group. Built by run.mjs, with sanitizers.
#include <cstring>
#include <functional>

#include "check.h"

using namespace millrace::kv::test;

int main(int count, char** argv) {
  const auto seed = static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10));
  const auto cases = static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10));
  std::mt19937 random(seed);
  const struct {
    const char* name;
    std::function<void()> run;
  } groups[] = {
      {"loading", ucx_loads_quietly},
      {"plans", [&] { plan_random(random, cases); }},
      {"tables", [&] { table_random(random, cases * 10); }},
      {"copies", [&] { copy_random(random, cases / 10 + 1); }},
      {"pools", pool_checks},
      {"hosts", host_transports},
      {"checksums", [&] { crc_random(random, cases / 10 + 1); }},
      {"metadata", [&] { metadata_random(random, cases); }},
      {"contracts", transport_contracts},
      {"costs", [&] { cost_checks(random, cases / 10 + 1); }},
      {"leases", lease_checks},
      {"ports", [&] { port_checks(random, cases); }},
      {"aborts", [&] { abort_random(random, cases * 5); }},
      {"forged", host_forged},
      {"tcp", [&] { tcp_checks(random, cases / 10 + 20); }},
      {"hostile", [&] { tcp_hostile(random, cases * 10); }},
      {"ucx", [&] { ucx_checks(random, cases / 10 + 20); }},
  };
  bool has_run = false;
  for (const auto& group : groups) {
    if (count > 3 && std::strcmp(argv[3], group.name) != 0) continue;
    group.run();
    has_run = true;
  }
  check(has_run, "a group of that name");
  std::printf("%u cases without a finding\n", cases);
}
