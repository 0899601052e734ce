// The attached arrays of one thread: see attachments.h.
#include "attachments.h"

namespace millrace {
namespace {

constexpr uint32_t kPlaceBits = 8;
constexpr uint32_t kPlaceMask = (uint32_t{1} << kPlaceBits) - 1;
constexpr uint32_t kGenerationMask = (uint32_t{1} << (32 - kPlaceBits)) - 1;

}  // namespace

Attachments& Attachments::of(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return *static_cast<Attachments*>(data);
}

Attachment* Attachments::add(napi_env env, AttachmentKind kind, napi_value first, napi_value second,
                             uint32_t* handle) {
  size_t place = 0;
  while (place < places_.size() && places_[place].kind != AttachmentKind::kNone) place++;
  if (place == kPlacesMax) return nullptr;
  if (place == places_.size()) places_.emplace_back();
  Attachment* attachment = &places_[place];
  attachment->kind = kind;
  napi_create_reference(env, first, 1, &attachment->references[0]);
  napi_create_reference(env, second, 1, &attachment->references[1]);
  *handle = (attachment->generation << kPlaceBits) | static_cast<uint32_t>(place + 1);
  return attachment;
}

Attachment* Attachments::at(uint32_t handle) {
  const uint32_t place = handle & kPlaceMask;
  if (place == 0 || place > places_.size()) return nullptr;
  Attachment* attachment = &places_[place - 1];
  const bool living = attachment->kind != AttachmentKind::kNone && attachment->generation == handle >> kPlaceBits;
  return living ? attachment : nullptr;
}

Attachment* Attachments::find(uint32_t handle, AttachmentKind kind) {
  Attachment* attachment = at(handle);
  return attachment != nullptr && attachment->kind == kind ? attachment : nullptr;
}

bool Attachments::remove(napi_env env, uint32_t handle) {
  Attachment* attachment = at(handle);
  if (attachment == nullptr) return false;
  release(env, attachment);
  return true;
}

void Attachments::remove_all(napi_env env) {
  for (Attachment& attachment : places_) {
    if (attachment.kind != AttachmentKind::kNone) release(env, &attachment);
  }
}

void Attachments::release(napi_env env, Attachment* attachment) {
  for (napi_ref& reference : attachment->references) {
    napi_delete_reference(env, reference);
    reference = nullptr;
  }
  attachment->index_writer.reset();
  attachment->index_reader.reset();
  attachment->kind = AttachmentKind::kNone;
  attachment->generation = (attachment->generation + 1) & kGenerationMask;
}

}  // namespace millrace
