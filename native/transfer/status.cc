// Names of the statuses. See status.h.
#include "status.h"

namespace millrace::kv {

const char* status_name(Status status) {
  switch (status) {
    case Status::kOk: return "ok";
    case Status::kInvalid: return "invalid";
    case Status::kNotFound: return "not found";
    case Status::kMismatch: return "mismatch";
    case Status::kNotAllowed: return "not allowed";
    case Status::kBusy: return "busy";
    case Status::kFull: return "full";
    case Status::kUnsupported: return "unsupported";
    case Status::kPeerLost: return "peer lost";
    case Status::kCancelled: return "cancelled";
    case Status::kDeadline: return "deadline";
    case Status::kCorrupt: return "corrupt";
    case Status::kStale: return "stale";
    case Status::kSystem: return "system";
    case Status::kClosed: return "closed";
  }
  return "unknown";
}

}  // namespace millrace::kv
