// The list of what can be used here. See transports.h.
#include "transports.h"

#include "cma_transport.h"
#include "cuda_transport.h"
#include "memory_transport.h"
#include "shm_transport.h"
#include "tcp_transport.h"
#include "ucx_transport.h"

namespace millrace::kv {
namespace {

template <class Made>
TransportMaker host_transport() {
  return {&Made::probe, [](const TransportSetup& setup, std::string* error) {
            std::unique_ptr<Transport> made;
            // Null with the reason when it fails.
            Made::create(setup.host, &made, error);
            return made;
          }};
}

}  // namespace

TransportMaker shm_transport() { return host_transport<ShmTransport>(); }

TransportMaker cma_transport() { return host_transport<CmaTransport>(); }

TransportMaker cuda_transport() { return host_transport<CudaTransport>(); }

const std::vector<TransportMaker>& built_in_transports() {
  static const std::vector<TransportMaker> makers = {memory_transport({}), shm_transport(), cma_transport(),
                                                     tcp_transport({}), ucx_transport(), cuda_transport()};
  return makers;
}

}  // namespace millrace::kv
