// What the random tests of the transfer core share: a failed check ends the program with its words.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

namespace millrace::kv::test {

inline void check(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what.c_str());
  std::abort();
}

// From `least` to `most`.
inline uint32_t pick(std::mt19937& random, uint32_t least, uint32_t most) {
  return least + static_cast<uint32_t>(random() % (most - least + 1));
}

// Steps of a block table against a model, and threads that work on blocks while they are reused.
void table_random(std::mt19937& random, uint32_t steps);

// Random layouts, and every run of a plan against a copy element by element.
void plan_random(std::mt19937& random, uint32_t cases);

// Random runs, copied, against a loop byte by byte.
void copy_random(std::mt19937& random, uint32_t cases);

// Memory pools and what they refuse.
void pool_checks();

// Shm and cma with a second process.
void host_transports();

// Checksums against their definition, damaged metadata, and the contract of transports on agents of one process.
void crc_random(std::mt19937& random, uint32_t cases);
void metadata_random(std::mt19937& random, uint32_t cases);
void transport_contracts();

// What the agent learns of the ways to a peer.
void cost_checks(std::mt19937& random, uint32_t cases);

// Leases between two agents.
void lease_checks();

// Ports in shared memory, with threads and with nonsense.
void port_checks(std::mt19937& random, uint32_t cases);

// Transfers under aborts and deaths.
void abort_random(std::mt19937& random, uint32_t operations);
// What they refuse.
void host_forged();

// The tcp transport: its contract, between two processes, under cancels; and peers that do not keep to its wire format.
void tcp_checks(std::mt19937& random, uint32_t rounds);
void tcp_hostile(std::mt19937& random, uint32_t cases);

// The ucx transport, where UCX is installed.
void ucx_loads_quietly();
void ucx_checks(std::mt19937& random, uint32_t rounds);
void ucx_hostile(std::mt19937& random, uint32_t cases);

}  // namespace millrace::kv::test
