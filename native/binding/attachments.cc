// The attached arrays of one thread: see attachments.h.
#include "attachments.h"

#include <utility>

namespace millrace {
namespace {

constexpr uint32_t kPlaceBits = 8;
constexpr uint32_t kPlaceMask = (uint32_t{1} << kPlaceBits) - 1;
constexpr uint32_t kGenerationMask = (uint32_t{1} << (32 - kPlaceBits)) - 1;

}  // namespace

size_t Attachments::free_place() const {
  size_t index = 0;
  while (index < places_.size() && !places_[index].is_free()) index++;
  return index;
}

uint32_t Attachments::add(Attached attached, std::initializer_list<Napi::Value> arrays) {
  const size_t index = free_place();
  if (index == places_.size()) places_.emplace_back();
  Place& place = places_[index];
  place.attached = std::move(attached);
  Napi::ObjectReference* next = place.arrays;
  for (const Napi::Value& array : arrays) *next++ = Napi::Persistent(array.As<Napi::Object>());
  return (place.generation << kPlaceBits) | static_cast<uint32_t>(index + 1);
}

Attachments::Place* Attachments::at(uint32_t handle) {
  const uint32_t index = handle & kPlaceMask;
  if (index == 0 || index > places_.size()) return nullptr;
  Place* place = &places_[index - 1];
  return place->generation == handle >> kPlaceBits && !place->is_free() ? place : nullptr;
}

bool Attachments::remove(uint32_t handle) {
  Place* place = at(handle);
  if (place == nullptr) return false;
  place->attached = std::monostate{};
  place->generation = (place->generation + 1) & kGenerationMask;
  for (Napi::ObjectReference& array : place->arrays) array.Reset();
  return true;
}

}  // namespace millrace
