// Device pools between two processes: by a handle of the driver and by descriptor, with host pools on either side, other
// layouts, integrity, generations; a killed peer and a cancelled operation whose copies still stand in a stream.
#include "cuda_transport.h"
#include "device_memory.h"
#include "host_side.h"

namespace millrace::kv::test {
namespace {

using Memory = std::unique_ptr<Pool> (*)(uint64_t);

struct CudaSide : Side {
  explicit CudaSide(const PeerSetup& setup) : Side(setup) {
    check(transport->add_pool(pool.get()) == Status::kOk, "the pool is taken");
  }
};

MemoryKind kind_of(const PeerSetup& setup) { return setup.memory == nullptr ? MemoryKind::kHost : MemoryKind::kDevice; }

struct Pair {
  Pair(const PeerSetup& there, Memory here, const Layout& layout) : peer(there), remote(there) {
    PeerSetup own = there;
    own.memory = here;
    own.layout = layout;
    side = std::make_unique<CudaSide>(own);
    side->add(peer);
  }
  Request& post(uint64_t id, Direction direction, const std::vector<uint32_t>& blocks) {
    requests.push_back(std::make_unique<Request>(*side, peer, remote.layout, direction, id));
    Request& request = *requests.back();
    request.operation.remote_kind = kind_of(remote);
    request.set_blocks(blocks);
    check(side->transport->submit(kPeer, request.operation) == Status::kOk, "taken");
    return request;
  }
  PeerProcess peer;
  PeerSetup remote;
  std::unique_ptr<CudaSide> side;
  std::vector<std::unique_ptr<Request>> requests;
};

void moves(const PeerSetup& there, Memory here, const Layout& layout, Integrity integrity) {
  Pair pair(there, here, layout);
  Side& side = *pair.side;
  for (uint64_t i = 0; i < side.pool->bytes(); i++) side.pool->address()[i] = static_cast<uint8_t>(i * 7 + 1);
  const std::vector<uint8_t> before = bytes_in(*side.pool);
  Request& read = pair.post(11, Direction::kRead, {6, 0, 4, 2});
  const std::vector<uint8_t> expected = read.apply(pattern(there.layout.pool_bytes()), before);
  const Status outcome = side.wait(11);
  check(outcome == Status::kOk, std::string("a read succeeds, not: ") + status_name(outcome));
  check(bytes_in(*side.pool) == expected, "a read brings what the layouts say");
  Request write(side, pair.peer, there.layout, Direction::kWrite, 12);
  write.operation.remote_kind = kind_of(there);
  write.operation.integrity = integrity;
  write.set_blocks({1, 5, 3});
  const std::vector<uint8_t> written = write.apply(bytes_in(*side.pool), pattern(there.layout.pool_bytes()));
  check(side.transport->submit(kPeer, write.operation) == Status::kOk && side.wait(12) == Status::kOk, "a write succeeds");
  check(pair.peer.dump() == written, "a write brings what the layouts say, and touches nothing else");
  check(pair.peer.frees_all(), "no operation is left in a block");
  check(double_faults() == 0, "nothing else was touched");
}

PeerSetup setup_of(Memory memory, const Layout& layout) {
  return {CudaTransport::create, layout, false, TableKind::kShared, memory};
}

void generations_move_on() {
  const Layout layout = opaque(4096, 8);
  Pair pair(setup_of(torch_like_memory, layout), own_device_memory, layout);
  Side& side = *pair.side;
  pair.post(1, Direction::kRead, {0});
  check(side.wait(1) == Status::kOk, "one block");
  double_hold(true);
  pair.post(2, Direction::kRead, {0, 2, 4});
  for (int i = 0; i < 20; i++) side.progress();
  pair.peer.renew(4);
  check(!side.done.contains(2), "it stands in the stream");
  double_hold(false);
  check(side.wait(2) == Status::kStale, "a read whose block has gone to another is stale");
  pair.post(3, Direction::kRead, {4});
  check(side.wait(3) == Status::kStale, "from the first on");
  pair.post(4, Direction::kWrite, {2});
  check(side.wait(4) == Status::kNotAllowed, "a ready block is not written");
  check(pair.peer.frees_all(), "no operation is left in a block");
}

// Cancelled, too late, removed: none of it ends before the device is past the bytes, and then it does.
void ends_when_quiet() {
  const Layout layout = opaque(64 * 1024, 32);
  for (int how = 0; how < 3; how++) {
    Pair pair(setup_of(torch_like_memory, layout), own_device_memory, layout);
    Side& side = *pair.side;
    pair.post(1, Direction::kRead, {0});
    check(side.wait(1) == Status::kOk, "one block");
    double_hold(true);
    Request& write = pair.post(2, Direction::kWrite, {1, 3, 5, 7});
    const uint64_t launched = double_calls("cuStreamWriteValue64_v2");
    side.until([&] { return double_calls("cuStreamWriteValue64_v2") > launched; }, "its copies are queued");
    if (how == 0) side.transport->cancel(2);
    if (how == 1) side.transport->remove_peer(kPeer);
    if (how == 2) pair.peer.kill_now();
    const uint64_t until = side.host.now_ns() + 30'000'000;
    while (side.host.now_ns() < until) side.progress();
    check(!side.done.contains(2), "it has not completed while its copies stand in the stream");
    check(side.transport->remove_pool(side.pool.get()) == Status::kBusy, "and its pool is in use");
    const std::vector<uint8_t> written = write.apply(bytes_in(*side.pool), pattern(layout.pool_bytes()));
    double_hold(false);
    const Status expected = how == 2 ? Status::kPeerLost : Status::kCancelled;
    check(side.wait(2) == expected, "then it ends, for the reason it was ended for");
    check(how == 2 || pair.peer.dump() == written, "what was queued was carried out before");
    check(how == 2 || pair.peer.frees_all(), "the peer has its blocks back");
    check(side.transport->remove_pool(side.pool.get()) == Status::kOk, "the pool can go");
    check(double_faults() == 0, "the peer's memory was open until then");
  }
}

// What is not queued yet is not carried out.
void cancels_before() {
  const Layout layout = opaque(4096, 4);
  Pair pair(setup_of(own_device_memory, layout), own_device_memory, layout);
  Side& side = *pair.side;
  pair.post(1, Direction::kRead, {0});
  side.transport->cancel(1);
  check(side.wait(1) == Status::kCancelled, "cancelled at once");
  pair.post(2, Direction::kRead, {2});
  check(side.wait(2) == Status::kOk, "the next one is carried out");
}

// Memory that cannot be told to another process, and host memory that is not ours.
std::unique_ptr<Pool> two_mappings(uint64_t bytes) {
  std::unique_ptr<Pool> pool = torch_like_memory(bytes);
  double_fail_next("cuIpcGetMemHandle", 1);
  return pool;
}

void refuses() {
  const Layout layout = opaque(4096, 4);
  Pair pair(setup_of(two_mappings, layout), own_device_memory, layout);
  pair.post(1, Direction::kRead, {0});
  check(pair.side->wait(1) == Status::kUnsupported, "no way to it");
  PeerSetup wrapped = setup_of(nullptr, layout);
  wrapped.is_wrapped = true;
  Pair other(wrapped, own_device_memory, layout);
  other.post(1, Direction::kRead, {0});
  check(other.side->wait(1) == Status::kUnsupported, "nor to a foreign process's own memory");
}

}  // namespace

void cuda_processes() {
  const Layout nhd = paged(InnerOrder::kNhd, 8, 0, 1, 8);
  const Layout hnd = paged(InnerOrder::kHnd, 8, 0, 1, 8);
  const Layout slice = paged(InnerOrder::kNhd, 4, 1, 2, 8);
  with_each_driver([&] {
    moves(setup_of(torch_like_memory, nhd), own_device_memory, hnd, Integrity::kOff);
    moves(setup_of(own_device_memory, slice), torch_like_memory, nhd, Integrity::kFull);
    moves(setup_of(other_device_memory, hnd), own_device_memory, slice, Integrity::kSample);
    moves(setup_of(own_device_memory, nhd), nullptr, nhd, Integrity::kFull);
    moves(setup_of(nullptr, hnd), torch_like_memory, nhd, Integrity::kFull);
    generations_move_on();
    cancels_before();
    refuses();
  });
  ends_when_quiet();
}

}  // namespace millrace::kv::test
