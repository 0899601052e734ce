// What a C caller gives: layouts, sizes, ranges, block lists. Two agents of one process open a pool each as the input says,
// one of them submits a transfer, and everything ends; pools are pieces of the heap of exactly their size, so that a byte
// beside one is found. The bytes of the input are the fields in their order, small numbers in a byte.
#include <cstdlib>
#include <memory>
#include <vector>

#include "millrace_kv.h"
#include "words.h"

namespace {

using millrace::kv::WordReader;

constexpr size_t kPlanesMost = 8;
constexpr uint32_t kBlocksMost = 16;

mkv_agent* open_agent() {
  mkv_agent_params params{};
  params.size = sizeof(params);
  params.abi = MKV_ABI;
  params.name = "fuzz";
  params.transports = "memory";
  params.spin_us = 1000;
  mkv_agent* agent = nullptr;
  if (mkv_agent_open(&params, &agent) != MKV_OK) std::abort();
  return agent;
}

// Mostly a small number, at times any.
uint32_t number(WordReader& in) {
  const auto byte = in.take<uint8_t>();
  return byte < 0xf8 ? byte : in.take<uint32_t>();
}

struct GivenPool {
  std::unique_ptr<uint8_t[]> memory;
  uint32_t id = 0;
  bool is_open = false;

  GivenPool(mkv_agent* agent, WordReader& in) {
    mkv_layout layout{};
    // One byte less or more than there are fields, at times.
    layout.size = sizeof(layout) - (in.take<uint8_t>() == 1 ? 8 : 0);
    layout.abi = MKV_ABI;
    for (uint32_t* field : {&layout.kind, &layout.blocks, &layout.layers, &layout.block_tokens, &layout.heads, &layout.heads_total,
                            &layout.head_dim, &layout.element_bytes, &layout.tp_rank, &layout.tp_size, &layout.block_order,
                            &layout.inner_order, &layout.kv_split})
      *field = number(in);
    mkv_plane planes[kPlanesMost];
    layout.plane_count = number(in) % (kPlanesMost + 1);
    for (uint32_t i = 0; i < layout.plane_count; i++) planes[i] = {number(in), number(in)};
    layout.planes = planes;
    layout.block_bytes = number(in);
    layout.stride = number(in);
    mkv_pool_params params{};
    params.size = sizeof(params);
    params.abi = MKV_ABI;
    params.layout = &layout;
    params.bytes = in.take<uint16_t>();
    memory = std::make_unique<uint8_t[]>(params.bytes);
    params.address = memory.get();
    is_open = mkv_pool_open(agent, &params, &id) == MKV_OK;
    if (!is_open && *mkv_last_error() == 0) std::abort();
  }
};

void transfer(mkv_agent* agent, mkv_agent* other, const GivenPool& local, const GivenPool& remote, WordReader& in) {
  std::vector<uint8_t> metadata(4096);
  size_t bytes = metadata.size();
  mkv_transfer_params params{};
  if (mkv_metadata(other, metadata.data(), &bytes) != MKV_OK || mkv_peer_add(agent, metadata.data(), bytes, &params.peer) != MKV_OK)
    std::abort();
  params.size = sizeof(params);
  params.abi = MKV_ABI;
  for (uint32_t* field : {&params.direction, &params.first_layer, &params.layers, &params.first_head, &params.heads,
                          &params.integrity, &params.reader, &params.priority})
    *field = number(in);
  params.local_pool = local.id;
  params.remote_pool = remote.id;
  params.block_count = number(in) % (kBlocksMost + 1);
  std::vector<uint32_t> blocks(2 * params.block_count);
  for (uint32_t& block : blocks) block = number(in);
  params.local_blocks = blocks.data();
  params.remote_blocks = blocks.data() + params.block_count;
  uint64_t id = 0;
  if (mkv_submit(agent, &params, &id) != MKV_OK) {
    if (*mkv_last_error() == 0) std::abort();
    return;
  }
  for (;;) {
    mkv_event event;
    if (mkv_poll(agent, &event, 1, 10'000) != 1) std::abort();
    if (event.kind != MKV_COMPLETION) continue;
    if (event.id != id) std::abort();
    return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static mkv_agent* const agents[] = {open_agent(), open_agent()};
  WordReader in(bytes, size);
  const GivenPool local(agents[0], in), remote(agents[1], in);
  if (local.is_open && remote.is_open) transfer(agents[0], agents[1], local, remote, in);
  if (local.is_open && mkv_pool_close(agents[0], local.id) != MKV_OK) std::abort();
  if (remote.is_open && mkv_pool_close(agents[1], remote.id) != MKV_OK) std::abort();
  return 0;
}
