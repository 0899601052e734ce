// The transports that are built in: what an agent chooses from. Any thread.
#pragma once

#include <vector>

#include "../transfer/transport.h"

namespace millrace::kv {

TransportMaker shm_transport();
TransportMaker cma_transport();
TransportMaker cuda_transport();

const std::vector<TransportMaker>& built_in_transports();

}  // namespace millrace::kv
