/*
 * The transfer engine as a C library: agents that move KV blocks between pools of processes and hosts, for engines and
 * their connectors in any language. libmillrace_kv.so exports these functions and nothing else; no exception crosses them.
 *
 * Results: 0 or more is success, below zero a status (mkv_status_name); mkv_last_error has the words of the last failure
 * on the calling thread. Structs begin with their size and MKV_ABI, so that a library can serve callers that were built
 * before it grew: fields are added at the end, and 0 is the value of a field that a caller does not know.
 *
 * Threads: every function of an agent may be called by any thread, but mkv_poll by one at a time, and mkv_agent_close
 * once, after all other calls. Bytes are moved by a thread of the agent's own.
 */
#ifndef MILLRACE_KV_H
#define MILLRACE_KV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MKV_ABI 1u
#define MKV_API __attribute__((visibility("default")))

enum mkv_status {
  MKV_OK = 0,
  MKV_INVALID = -1,
  MKV_NOT_FOUND = -2,
  MKV_MISMATCH = -3,
  MKV_NOT_ALLOWED = -4,
  MKV_BUSY = -5,
  MKV_FULL = -6,
  MKV_UNSUPPORTED = -7,
  MKV_PEER_LOST = -8,
  MKV_CANCELLED = -9,
  MKV_DEADLINE = -10,
  MKV_CORRUPT = -11,
  MKV_STALE = -12,
  MKV_SYSTEM = -13,
  MKV_CLOSED = -14
};
enum mkv_direction { MKV_READ = 0, MKV_WRITE = 1 };
enum mkv_integrity { MKV_INTEGRITY_OFF = 0, MKV_INTEGRITY_SAMPLE = 1, MKV_INTEGRITY_FULL = 2 };
enum mkv_reader { MKV_READER_UNKNOWN = 0, MKV_READER_SOON = 1, MKV_READER_LATER = 2 };
enum mkv_layout_kind { MKV_PAGED_KV = 0, MKV_TENSOR_LIST = 1, MKV_OPAQUE = 2 };
enum mkv_event_kind {
  MKV_COMPLETION = 0,
  MKV_NOTIFICATION = 1,
  MKV_PEER_UP = 2,
  MKV_PEER_LOST_EVENT = 3,
  MKV_LEASE_EXPIRED = 4
};

typedef struct mkv_agent mkv_agent;

typedef struct mkv_agent_params {
  uint32_t size, abi;
  const char* name;
  /* Names with commas between them; NULL or empty: all that are available. */
  const char* transports;
  /* Where tcp listens; NULL: 127.0.0.1. */
  const char* listen_host;
  /* Transfers at once; 0: 4096. */
  uint32_t operations_max;
  /* How long the agent's thread spins before it sleeps. */
  uint32_t spin_us;
} mkv_agent_params;

typedef struct mkv_plane {
  uint64_t base, block_stride;
} mkv_plane;

/* native/transfer/layout.h says what the fields mean and draws the orders. */
typedef struct mkv_layout {
  uint32_t size, abi;
  uint32_t kind;
  uint32_t blocks;
  uint32_t layers, block_tokens, heads, heads_total, head_dim, element_bytes;
  uint32_t tp_rank, tp_size;
  /* 0 layer-major, 1 block-major. 0 NHD, 1 HND. K and V: 0 apart, 1 side by side, 2 joined. */
  uint32_t block_order, inner_order, kv_split;
  /* Of a tensor list. */
  uint32_t plane_count;
  const mkv_plane* planes;
  /* Of opaque blocks. */
  uint64_t block_bytes, stride;
  /* NULL: empty. */
  const char* model;
} mkv_layout;

typedef struct mkv_pool_params {
  uint32_t size, abi;
  const mkv_layout* layout;
  uint64_t bytes;
  /* Memory of the caller, which stays until the pool is closed; NULL: new memory that other processes can map. */
  void* address;
  /* 0 host, 1 device; and the device's number, as the CUDA driver counts (what torch.cuda calls its index). `address` is
     then memory of that device; what it holds must be there before a transfer is told of it. */
  uint32_t memory_kind;
  int32_t device;
  const char* name;
} mkv_pool_params;

typedef struct mkv_transfer_params {
  uint32_t size, abi;
  uint32_t peer, direction;
  uint32_t local_pool, remote_pool;
  /* Block i of one list goes with block i of the other. */
  const uint32_t* local_blocks;
  const uint32_t* remote_blocks;
  /* NULL where the peer's pool keeps none. */
  const uint32_t* remote_generations;
  uint32_t block_count;
  /* 0 layers, 0 heads: all. */
  uint32_t first_layer, layers, first_head, heads;
  uint32_t integrity, reader, priority;
  /* From now; 0: none. */
  uint32_t deadline_ms;
  uint32_t notification_bytes;
  const uint8_t* notification;
  /* The peer's lease on its blocks; 0: none. */
  uint64_t lease;
  /* NULL: the cheapest that reaches the peer. */
  const char* transport;
} mkv_transfer_params;

typedef struct mkv_event {
  uint32_t kind;
  int32_t status;
  /* Of a transfer or a lease. */
  uint64_t id;
  uint64_t bytes;
  uint64_t posted_ns, begun_ns, done_ns;
  uint32_t peer;
  uint32_t notification_bytes;
  /* Until the agent's next mkv_poll. NULL: none. */
  const uint8_t* notification;
  const char* transport;
} mkv_event;

MKV_API uint32_t mkv_abi(void);
MKV_API const char* mkv_status_name(int32_t status);
/* Until the thread's next failure. */
MKV_API const char* mkv_last_error(void);

MKV_API int32_t mkv_agent_open(const mkv_agent_params* params, mkv_agent** out);
/* Ends every transfer, waits until its bytes are quiet, and frees agent and pools. NULL does nothing. */
MKV_API void mkv_agent_close(mkv_agent* agent);

/* Writes the pool's id. */
MKV_API int32_t mkv_pool_open(mkv_agent* agent, const mkv_pool_params* params, uint32_t* pool);
/* NULL for a pool that is not open. Of a device pool the address there, which the host must not touch. */
MKV_API void* mkv_pool_address(mkv_agent* agent, uint32_t pool);
/* MKV_BUSY while a transfer or a lease is in it. */
MKV_API int32_t mkv_pool_close(mkv_agent* agent, uint32_t pool);

/* Copies what a peer needs to connect. `*bytes` is the room, and then the length; MKV_FULL where the room is too small. */
MKV_API int32_t mkv_metadata(mkv_agent* agent, uint8_t* out, size_t* bytes);
/* Writes the peer's number, which is the one of before when it is known. */
MKV_API int32_t mkv_peer_add(mkv_agent* agent, const uint8_t* metadata, size_t bytes, uint32_t* peer);
MKV_API int32_t mkv_peer_remove(mkv_agent* agent, uint32_t peer);

/* Begins a transfer and writes its id; exactly one MKV_COMPLETION follows. Nothing was begun when it fails. */
MKV_API int32_t mkv_submit(mkv_agent* agent, const mkv_transfer_params* params, uint64_t* id);
/* Its completion comes sooner. */
MKV_API int32_t mkv_cancel(mkv_agent* agent, uint64_t id);
MKV_API int32_t mkv_notify(mkv_agent* agent, uint32_t peer, const uint8_t* bytes, size_t length);
/* Takes up to `max` events that have happened and returns how many; waits up to `timeout_ms` for the first. */
MKV_API int32_t mkv_poll(mkv_agent* agent, mkv_event* out, uint32_t max, uint32_t timeout_ms);

/* A lease on blocks here for a peer, 0: whoever renews it. */
MKV_API int32_t mkv_lease(mkv_agent* agent, uint32_t pool, const uint32_t* blocks, uint32_t count, uint32_t ttl_ms,
                          uint32_t peer, uint64_t* lease);
MKV_API int32_t mkv_lease_release(mkv_agent* agent, uint64_t lease);
/* The other side: renews a peer's lease until it is dropped or the peer is lost. */
MKV_API int32_t mkv_lease_hold(mkv_agent* agent, uint32_t peer, uint64_t lease);
MKV_API int32_t mkv_lease_drop(mkv_agent* agent, uint32_t peer, uint64_t lease);

/* The agent's numbers as JSON, with the room and length as in mkv_metadata, without a terminating zero. */
MKV_API int32_t mkv_stats(mkv_agent* agent, char* out, size_t* bytes);

#ifdef __cplusplus
}
#endif
#endif
