// The ucx transport over the lanes of one host, each set of them in a process of its own, as UCX reads its settings once:
// the contract, faults, bytes that are moved without messages, and messages of nobody.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "check.h"
#include "node.h"
#include "transport_contract.h"
#include "transport_faults.h"
#include "ucx_transport.h"

#if defined(__SANITIZE_ADDRESS__)
// What libucs keeps until the process ends.
extern "C" const char* __lsan_default_suppressions() { return "leak:libucs.so\nleak:libuct.so\nleak:libucp.so\n"; }
#endif

namespace millrace::kv::test {
namespace {

void suite(std::mt19937& random, uint32_t rounds) {
  fault_suite(ucx_transport, random, rounds);
  contract_suite({ucx_transport, {}});
}

// In a child with these lanes only; how it ended is checked.
template <class Run>
void with_lanes(const char* lanes, Run run) {
  std::fflush(nullptr);
  const pid_t child = fork();
  check(child >= 0, "a child");
  if (child == 0) {
    setenv("UCX_TLS", lanes, 1);
    run();
    std::exit(0);
  }
  int status = 0;
  check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
        std::string("ucx over ") + lanes + " ended with status " + std::to_string(status));
}

}  // namespace

void ucx_checks(std::mt19937& random, uint32_t rounds) {
#if defined(__SANITIZE_THREAD__)
  std::printf("ucx is not tested: UCX is not built for the thread sanitizer, which sees only half of its locks\n");
  return;
#endif
  const TransportInfo info = UcxTransport::probe();
  if (!info.available) {
    std::printf("ucx is not tested: %s\n", info.reason.c_str());
    return;
  }
  for (const char* lanes : {"posix", "tcp"}) with_lanes(lanes, [&] { suite(random, rounds); });
}

}  // namespace millrace::kv::test
