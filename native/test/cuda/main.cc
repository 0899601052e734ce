// Tests of the cuda transport with a double of the driver's library: `main SEED CASES`. What they show is that our state
// machine keeps its promises when a driver does as documented, and that the kernels' index maths is that of the plans; they
// show nothing about a GPU. Built by run.mjs, with sanitizers.
#include "device_memory.h"

int main(int, char** argv) {
  const auto seed = static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10));
  const auto cases = static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10));
  std::mt19937 random(seed);
  millrace::kv::test::cuda_processes();
  millrace::kv::test::index_random(random, cases);
  millrace::kv::test::copy_checks(random, cases / 20 + 5);
  millrace::kv::test::cuda_faults();
  millrace::kv::test::cuda_contract();
  std::printf("%u cases without a finding\n", cases);
}
