/* A C caller of libmillrace_kv: two agents of one process, one write with a notification, and what is refused. */
#include <stdio.h>
#include <string.h>

#include "millrace_kv.h"

#define BLOCK_BYTES 4096u
#define BLOCKS 4u

static int failures = 0;

static void expect(int holds, const char* what) {
  if (holds) return;
  failures++;
  fprintf(stderr, "%s: %s\n", what, mkv_last_error());
}

static mkv_agent* open_agent(const char* name) {
  mkv_agent* agent = NULL;
  mkv_agent_params params = {.size = sizeof params, .abi = MKV_ABI, .name = name, .transports = "memory"};
  expect(mkv_agent_open(&params, &agent) == MKV_OK, "agent");
  return agent;
}

static uint32_t open_pool(mkv_agent* agent) {
  uint32_t pool = 0;
  mkv_layout layout = {.size = sizeof layout, .abi = MKV_ABI, .kind = MKV_OPAQUE, .blocks = BLOCKS,
                       .block_bytes = BLOCK_BYTES, .stride = BLOCK_BYTES};
  mkv_pool_params params = {.size = sizeof params, .abi = MKV_ABI, .layout = &layout, .bytes = BLOCKS * BLOCK_BYTES};
  expect(mkv_pool_open(agent, &params, &pool) == MKV_OK, "pool");
  return pool;
}

static uint32_t connect_to(mkv_agent* agent, mkv_agent* other) {
  static uint8_t blob[65536];
  uint32_t peer = 0;
  size_t bytes = 8;
  expect(mkv_metadata(other, blob, &bytes) == MKV_FULL && bytes > 8, "metadata says how much room it needs");
  bytes = sizeof blob;
  expect(mkv_metadata(other, blob, &bytes) == MKV_OK, "metadata");
  expect(mkv_peer_add(agent, blob, bytes, &peer) == MKV_OK, "peer");
  blob[bytes / 2] ^= 1;
  expect(mkv_peer_add(agent, blob, bytes, &peer) < 0, "damaged metadata is refused");
  return peer;
}

int main(void) {
  mkv_agent* near = open_agent("near");
  mkv_agent* far = open_agent("far");
  const uint32_t near_pool = open_pool(near), far_pool = open_pool(far);
  connect_to(far, near);
  const uint32_t peer = connect_to(near, far);
  memset(mkv_pool_address(near, near_pool), 5, BLOCKS * BLOCK_BYTES);

  const uint32_t local[] = {0, 1}, remote[] = {3, 2};
  mkv_transfer_params transfer = {.size = sizeof transfer, .abi = MKV_ABI, .peer = peer, .direction = MKV_WRITE,
                                  .local_pool = near_pool, .remote_pool = far_pool, .local_blocks = local,
                                  .remote_blocks = remote, .block_count = 2, .deadline_ms = 10000,
                                  .notification = (const uint8_t*)"done", .notification_bytes = 4};
  uint64_t id = 0;
  expect(mkv_submit(near, &transfer, &id) == MKV_OK && id > 0, "submit");
  mkv_event event;
  do expect(mkv_poll(near, &event, 1, 10000) == 1, "poll");
  while (event.kind != MKV_COMPLETION && failures == 0);
  expect(event.id == id && event.status == MKV_OK && event.bytes == 2 * BLOCK_BYTES, "completion");
  expect(strcmp(event.transport, "memory") == 0, "transport");
  do expect(mkv_poll(far, &event, 1, 10000) == 1, "poll of the other");
  while (event.kind != MKV_NOTIFICATION && failures == 0);
  expect(event.notification_bytes == 4 && memcmp(event.notification, "done", 4) == 0, "notification");
  const uint8_t* bytes = mkv_pool_address(far, far_pool);
  expect(bytes[2 * BLOCK_BYTES] == 5 && bytes[4 * BLOCK_BYTES - 1] == 5 && bytes[0] == 0, "bytes");
  expect(mkv_poll(near, &event, 1, 1) == 0, "nothing more");

  transfer.remote_pool = 99;
  expect(mkv_submit(near, &transfer, &id) == MKV_NOT_FOUND, "no such pool");
  transfer.direction = 2;
  expect(mkv_submit(near, &transfer, &id) == MKV_INVALID && strstr(mkv_last_error(), "direction"), "direction");
  transfer.abi = MKV_ABI + 1;
  expect(mkv_submit(near, &transfer, &id) == MKV_INVALID && strstr(mkv_last_error(), "abi"), "abi");
  expect(mkv_pool_close(near, near_pool) == MKV_OK && mkv_pool_address(near, near_pool) == NULL, "pool is closed");
  mkv_agent_close(near);
  mkv_agent_close(far);
  mkv_agent_close(NULL);
  return failures == 0 ? 0 : 1;
}
