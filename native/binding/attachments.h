// The arrays that one JS thread has bound to the addon, named by integer handles. Part of that thread's MillraceAddon,
// so it is touched by one thread only and dies with it.
#pragma once

#include <napi.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "event_decode.h"
#include "prefix_index.h"
#include "reserve.h"
#include "transfer_agent.h"
#include "transfer_port.h"

namespace millrace {

struct FrameArrays {
  int32_t* table;
  uint32_t* ids;
};

struct LookupArrays {
  std::span<const uint32_t> hashes;
  std::span<const uint32_t> holders;
  std::span<uint32_t> depths;
};

// What a handle stands for; std::monostate where a place is free.
using Attached = std::variant<std::monostate, FrameArrays, LoadSegments, EventTables, LookupArrays,
                              std::unique_ptr<IndexWriter>, std::unique_ptr<IndexReader>, std::unique_ptr<TransferAgent>,
                              std::unique_ptr<PortUser>>;

class Attachments {
 public:
  // Handles carry the place in their low 8 bits, from 1 on.
  static constexpr uint32_t kPlacesMax = 255;
  static constexpr size_t kArraysMax = 5;

  bool full() const { return free_place() == kPlacesMax; }
  // The handle of a free place that now holds `attached` and references to its arrays, at most kArraysMax. Not to be
  // called when full.
  uint32_t add(Attached attached, std::initializer_list<Napi::Value> arrays);
  // What is attached under that handle, or nullptr when the handle names no living attachment of that kind.
  template <class Kind>
  Kind* find(uint32_t handle) {
    Place* place = at(handle);
    return place == nullptr ? nullptr : std::get_if<Kind>(&place->attached);
  }
  // False when the handle names no living attachment.
  bool remove(uint32_t handle);

 private:
  struct Place {
    Attached attached;
    // Raised at every detach, so that an old handle does not name the next tenant of the place.
    uint32_t generation = 0;
    // Keep the arrays, and so the shared memory under them, alive.
    Napi::ObjectReference arrays[kArraysMax];

    bool is_free() const { return std::holds_alternative<std::monostate>(attached); }
  };

  size_t free_place() const;
  Place* at(uint32_t handle);

  std::vector<Place> places_;
};

}  // namespace millrace
