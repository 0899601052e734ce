#include "transports.h"

#include "memory_transport.h"
#include "tcp_transport.h"

namespace millrace::kv {

const std::vector<TransportMaker>& built_in_transports() {
  static const std::vector<TransportMaker> makers = {memory_transport({}), tcp_transport({})};
  return makers;
}

}  // namespace millrace::kv
