// Faults between processes: transport_faults.cc.
#pragma once

#include <functional>
#include <random>

#include "transport.h"

namespace millrace::kv::test {

using MakeMaker = std::function<TransportMaker()>;

// Forks: to be called while this process has one thread.
void fault_suite(const MakeMaker& make, std::mt19937& random, uint32_t rounds);

}  // namespace millrace::kv::test
