// How operations count themselves in and out of blocks. See service.h.
#include "service.h"

#include <utility>

namespace millrace::kv {

BlockHold& BlockHold::operator=(BlockHold&& other) noexcept {
  leave();
  table_ = std::exchange(other.table_, nullptr);
  blocks_ = std::move(other.blocks_);
  other.blocks_.clear();
  return *this;
}

Status BlockHold::enter(Pool& pool, std::span<const uint32_t> blocks, std::span<const uint32_t> generations,
                        std::string* error) {
  leave();
  if (!generations.empty() && generations.size() != blocks.size()) {
    *error = "generations must be as many as blocks, " + std::to_string(blocks.size()) + "; got " +
             std::to_string(generations.size());
    return Status::kInvalid;
  }
  for (const uint32_t block : blocks) {
    if (block < pool.layout().blocks()) continue;
    *error = "blocks of pool " + std::to_string(pool.id) + " must be below " + std::to_string(pool.layout().blocks()) +
             "; got " + std::to_string(block);
    return Status::kInvalid;
  }
  if (pool.table() == nullptr) return Status::kOk;
  table_ = pool.table();
  blocks_.reserve(blocks.size());
  for (size_t i = 0; i < blocks.size(); i++) {
    const uint32_t generation = generations.empty() ? table_->generation(blocks[i]) : generations[i];
    const Status status = table_->enter(blocks[i], generation);
    if (status == Status::kOk) {
      blocks_.push_back(blocks[i]);
      continue;
    }
    leave();
    *error = "block " + std::to_string(blocks[i]) + " of pool " + std::to_string(pool.id) +
             " is not in use under generation " + std::to_string(generation) + " any more";
    return status;
  }
  return Status::kOk;
}

Status BlockHold::serve(Pool& pool, Direction direction, std::span<const uint32_t> blocks,
                        std::span<const uint32_t> generations, std::string* error) {
  if (pool.table() != nullptr && generations.size() != blocks.size()) {
    *error = "remote_generations must be given for pool " + std::to_string(pool.id) + ", which keeps them";
    return Status::kInvalid;
  }
  if (const Status status = enter(pool, blocks, generations, error); status != Status::kOk || table_ == nullptr)
    return status;
  for (const uint32_t block : blocks_) {
    if (is_served(direction, table_->state(block))) continue;
    *error = std::string("a peer may not ") + (direction == Direction::kWrite ? "write" : "read") + " block " +
             std::to_string(block) + " of pool " + std::to_string(pool.id) + " in its state";
    leave();
    return Status::kNotAllowed;
  }
  return Status::kOk;
}

void BlockHold::leave() {
  for (const uint32_t block : blocks_) table_->leave(block);
  blocks_.clear();
  table_ = nullptr;
}

}  // namespace millrace::kv
