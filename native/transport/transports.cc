#include "transports.h"

#include "memory_transport.h"

namespace millrace::kv {

const std::vector<TransportMaker>& built_in_transports() {
  static const std::vector<TransportMaker> makers = {memory_transport({})};
  return makers;
}

}  // namespace millrace::kv
