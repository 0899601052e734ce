// The self-check of a block table, for tests: what each list and count says against what the blocks say. See block_table.h.
#include <vector>

#include "block_table_records.h"

namespace millrace::kv {

bool BlockTable::consistent() const {
  const Header& header = *header_;
  const auto length = [&](uint32_t head, uint32_t tail, uint32_t list) {
    uint32_t count = 0;
    uint32_t previous = kNoBlock;
    for (uint32_t block = head; block != kNoBlock && count <= blocks_; block = at(block).next) {
      if (at(block).previous != previous || at(block).list != list) return blocks_ + 1;
      previous = block;
      count++;
    }
    return previous == tail ? count : blocks_ + 1;
  };
  if (length(header.free_head, header.free_tail, kInFree) != header.free_count) return false;
  if (length(header.quarantine_head, header.quarantine_tail, kInQuarantine) != header.quarantine_count) return false;
  if (length(header.leaf_head, header.leaf_tail, kInLeaves) != header.leaf_count) return false;
  std::vector<uint32_t> children(blocks_);
  uint32_t states[5] = {};
  uint32_t pinned = 0;
  uint32_t timed = 0;
  for (uint32_t block = 0; block < blocks_; block++) {
    const Block& record = at(block);
    states[record.state]++;
    if (record.state != static_cast<uint32_t>(BlockState::kReady)) continue;
    if (record.parent != kNoBlock) children[record.parent]++;
    if (record.pins != 0 || record.pinned_until_ms != 0) pinned++;
    if (record.pinned_until_ms != 0) timed++;
    if (find(record.hash) != block || is_leaf(record) != (record.list == kInLeaves)) return false;
  }
  for (uint32_t block = 0; block < blocks_; block++) {
    const bool ready = at(block).state == static_cast<uint32_t>(BlockState::kReady);
    if (children[block] != (ready ? at(block).children : 0)) return false;
  }
  return states[0] == header.free_count && states[1] == header.reserved_count && states[2] == header.filling_count &&
         states[3] == header.ready_count && states[4] == header.quarantine_count && pinned == header.pinned_count &&
         timed == header.timed_count;
}

}  // namespace millrace::kv
