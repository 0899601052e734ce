#include "transports.h"

#include "cma_transport.h"
#include "memory_transport.h"
#include "shm_transport.h"

namespace millrace::kv {
namespace {

template <class Kind>
TransportMaker host_transport() {
  return {Kind::probe, [](const TransportSetup& setup, std::string* error) {
            std::unique_ptr<Transport> made;
            Kind::create(setup.host, &made, error);
            return made;
          }};
}

}  // namespace

const std::vector<TransportMaker>& built_in_transports() {
  static const std::vector<TransportMaker> makers = {memory_transport({}), host_transport<ShmTransport>(),
                                                     host_transport<CmaTransport>()};
  return makers;
}

}  // namespace millrace::kv
