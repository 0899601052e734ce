// The suite that every transport runs: transport_contract.cc.
#pragma once

#include <functional>

#include "node.h"
#include "transport.h"

namespace millrace::kv::test {

inline constexpr uint32_t kContractBlocks = 64;
inline constexpr uint32_t kContractBlockBytes = 16 * 1024;

struct ContractTransport {
  // Agents that only have this one can reach each other.
  std::function<TransportMaker()> plain;
  // The same, but operations submitted through it never move; empty where that cannot be had.
  std::function<TransportMaker()> stuck = {};
  // Of the two agents; their memory can be looked at from here.
  PoolMaker pool_here = make_host_pool;
  PoolMaker pool_there = make_host_pool;

  Node here(const TransportMaker& maker) const { return Node::make(maker, kContractBlocks, kContractBlockBytes, {}, 1024, pool_here); }
  Node there(const TransportMaker& maker, const Uuid& uuid = {}) const {
    return Node::make(maker, kContractBlocks, kContractBlockBytes, uuid, 1024, pool_there);
  }
};

void contract_suite(const ContractTransport& transport);

}  // namespace millrace::kv::test
