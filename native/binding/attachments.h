// The arrays that one JS thread has bound to the addon, named by integer handles. One Attachments per environment
// (its instance data), so it is touched by one thread only and dies with that thread.
#pragma once

#include <node_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "prefix_index.h"
#include "reserve.h"

namespace millrace {

struct FrameArrays {
  int32_t* table;
  uint32_t* ids;
};

enum class AttachmentKind : uint8_t { kNone, kFrames, kLoad, kIndexWriter, kIndexReader };

struct Attachment {
  AttachmentKind kind = AttachmentKind::kNone;
  // Raised at every detach, so that an old handle does not name the next tenant of the place.
  uint32_t generation = 0;
  // Keep the two arrays, and so the shared memory under them, alive.
  napi_ref references[2] = {nullptr, nullptr};
  FrameArrays frames{};
  LoadSegments load{};
  std::unique_ptr<IndexWriter> index_writer;
  std::unique_ptr<IndexReader> index_reader;
};

class Attachments {
 public:
  // Handles carry the place in their low 8 bits, from 1 on.
  static constexpr uint32_t kPlacesMax = 255;

  // The attachments of this thread.
  static Attachments& of(napi_env env);

  // A free place with references to both arrays, or nullptr when all are taken. `*handle` names it.
  Attachment* add(napi_env env, AttachmentKind kind, napi_value first, napi_value second, uint32_t* handle);
  // The living attachment of that handle and kind, or nullptr.
  Attachment* find(uint32_t handle, AttachmentKind kind);
  // False when the handle names no living attachment.
  bool remove(napi_env env, uint32_t handle);
  void remove_all(napi_env env);

 private:
  Attachment* at(uint32_t handle);
  static void release(napi_env env, Attachment* attachment);

  std::vector<Attachment> places_;
};

}  // namespace millrace
