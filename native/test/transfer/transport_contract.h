// The suite that every transport runs: transport_contract.cc.
#pragma once

#include <functional>

#include "transport.h"

namespace millrace::kv::test {

struct ContractTransport {
  // Agents that only have this one can reach each other.
  std::function<TransportMaker()> plain;
  // The same, but operations submitted through it never move; empty where that cannot be had.
  std::function<TransportMaker()> stuck;
};

void contract_suite(const ContractTransport& transport);

}  // namespace millrace::kv::test
