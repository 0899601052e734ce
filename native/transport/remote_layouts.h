// What the responder of a two-sided transport knows of one initiator: the layouts of its pools, and the transforms between
// them and ours; and whether a request for our blocks may be served. Requests carry block numbers only, so both sides lower
// the same transform. Private to native/transport; progress thread only.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pool.h"
#include "service.h"
#include "tcp_wire.h"

namespace millrace::kv {

class RemoteLayouts {
 public:
  // A layout as TcpLayout has it, the first or another of its pool. kInvalid for bytes that are none, kFull for too many.
  Status take(std::span<const uint8_t> payload, std::string* why);

  // Whether the request may be done; its blocks are counted into `hold` and its runs are in `runs` when it may.
  Status accept(Pool& pool, Direction direction, const TcpRequest& request, std::vector<Run>* runs,
                std::shared_ptr<const Transform>* transform, BlockHold* hold, std::string* text);

  // What refers to the layout of this pool of ours.
  void forget_pool(uint32_t own_pool);

 private:
  struct Known {
    uint32_t own_pool, peer_pool;
    Direction direction;
    Part part;
    std::shared_ptr<const Transform> transform;
  };

  Status transform_of(const Pool& pool, Direction direction, const TcpRequest& request, std::shared_ptr<const Transform>* out,
                      std::string* text);

  std::map<uint32_t, Layout> layouts_;
  std::vector<Known> transforms_;
};

}  // namespace millrace::kv
