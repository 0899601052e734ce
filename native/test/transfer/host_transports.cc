// Shm and cma between two processes: reads and writes under layouts that differ, integrity, generations that move on under
// a read, grants, notifications, deadlines, cancelling, and a peer that is killed in the middle.
#include <poll.h>

#include <cstring>
#include <map>

#include "check.h"
#include "cma_transport.h"
#include "host_peer.h"
#include "shm_transport.h"

namespace millrace::kv::test {
namespace {

constexpr uint32_t kPeer = 3;
constexpr uint64_t kWaitNs = 30'000'000'000;

// This process: its transport, one pool, and what has completed.
struct Side {
  explicit Side(const PeerSetup& setup) : layout(setup.layout) {
    std::string error;
    PeerSetup own = setup;
    own.table = TableKind::kNone;
    check(setup.make(&host, &transport, &error) == Status::kOk, error);
    std::vector<uint32_t> none;
    pool = make_pool(own, 1, &none);
  }

  void add(const PeerProcess& peer) {
    std::string reason;
    check(transport->add_peer(kPeer, peer.described, &reason) == Status::kOk, reason);
  }

  std::vector<uint8_t> described() {
    std::vector<uint8_t> own;
    transport->describe(&own);
    return own;
  }

  void progress() {
    std::vector<Completion> completions;
    transport->progress(&completions);
    for (const Completion& completion : completions) {
      check(!done.contains(completion.id), "an operation completes once");
      done[completion.id] = completion;
    }
  }

  // Progresses until it holds; a transport that has nothing to do is waited for at its descriptor.
  template <class Condition>
  void until(Condition holds, const std::string& what) {
    const uint64_t end = host.now_ns() + kWaitNs;
    while (!holds()) {
      std::vector<Completion> completions;
      if (!transport->progress(&completions)) {
        pollfd wait{transport->wait_descriptor(), POLLIN, 0};
        poll(&wait, 1, 1000);
      }
      for (const Completion& completion : completions) {
        check(!done.contains(completion.id), "an operation completes once");
        done[completion.id] = completion;
      }
      check(host.now_ns() < end, "in time: " + what);
    }
  }

  Status wait(uint64_t id) {
    until([&] { return done.contains(id); }, "completion");
    return done[id].status;
  }

  RecordingHost host;
  std::unique_ptr<Transport> transport;
  Layout layout;
  std::unique_ptr<Pool> pool;
  std::map<uint64_t, Completion> done;
};

// An operation and the lists that it points to.
struct Request {
  Request(Side& side, const PeerProcess& peer, const Layout& remote, Direction direction, uint64_t id) {
    std::string error;
    const bool is_read = direction == Direction::kRead;
    const Layout& source = is_read ? remote : side.layout;
    const Layout& target = is_read ? side.layout : remote;
    check(Transform::make(source, target, {}, &operation.transform, &error) == Status::kOk, error);
    operation.id = id;
    operation.direction = direction;
    operation.local = side.pool.get();
    operation.remote_pool = PeerProcess::kPool;
    peer_generations = peer.generations;
  }
  // Block i of ours with block list[i] of the peer.
  void set_blocks(const std::vector<uint32_t>& list) {
    for (uint32_t i = 0; i < list.size(); i++) local.push_back(i);
    remote = list;
    for (const uint32_t block : list) {
      if (!peer_generations.empty()) generations.push_back(peer_generations[block]);
    }
    operation.local_blocks = local;
    operation.remote_blocks = remote;
    operation.remote_generations = generations;
  }
  std::vector<uint8_t> apply(const std::vector<uint8_t>& source, std::vector<uint8_t> target) const {
    std::vector<Run> runs;
    std::string error;
    const bool is_read = operation.direction == Direction::kRead;
    check(operation.transform->lower((is_read ? remote : local).data(), (is_read ? local : remote).data(),
                                     static_cast<uint32_t>(local.size()), &runs, &error) == Status::kOk, error);
    for (const Run& run : runs) {
      for (uint32_t piece = 0; piece < run.count; piece++) {
        std::memcpy(&target[run.target + piece * run.target_stride], &source[run.source + piece * run.source_stride], run.length);
      }
    }
    return target;
  }
  Operation operation;
  std::vector<uint32_t> peer_generations, local, remote, generations;
};

std::vector<uint8_t> bytes_in(const Pool& pool) { return {pool.address(), pool.address() + pool.bytes()}; }

std::vector<uint8_t> pattern(uint64_t bytes) {
  std::vector<uint8_t> made(bytes);
  for (uint64_t i = 0; i < bytes; i++) made[i] = pattern_byte(i);
  return made;
}

Layout paged(InnerOrder inner, uint32_t heads, uint32_t rank, uint32_t ranks, uint32_t blocks) {
  PagedKvShape shape;
  shape.layers = 3;
  shape.block_tokens = 16;
  shape.heads = heads;
  shape.heads_total = 8;
  shape.head_dim = 64;
  shape.element_bytes = 2;
  shape.tp_rank = rank;
  shape.tp_size = ranks;
  shape.inner_order = inner;
  Layout layout;
  std::string error;
  const uint64_t bytes = uint64_t{3} * 2 * 16 * heads * 64 * 2 * blocks;
  check(Layout::paged_kv(shape, blocks, bytes, "model", &layout, &error) == Status::kOk, error);
  return layout;
}

Layout opaque(uint64_t block_bytes, uint32_t blocks) {
  Layout layout;
  std::string error;
  check(Layout::opaque(block_bytes, block_bytes, blocks, block_bytes * blocks, &layout, &error) == Status::kOk, error);
  return layout;
}

void moves(const PeerSetup& remote, const Layout& local, Integrity integrity) {
  PeerProcess peer(remote);
  PeerSetup here = remote;
  here.layout = local;
  Side side(here);
  side.add(peer);
  for (uint64_t i = 0; i < side.pool->bytes(); i++) side.pool->address()[i] = static_cast<uint8_t>(i * 7 + 1);

  Request read(side, peer, remote.layout, Direction::kRead, 11);
  read.set_blocks({7, 0, 4, 2});
  read.operation.integrity = integrity;
  const std::vector<uint8_t> expected = read.apply(pattern(remote.layout.pool_bytes()), bytes_in(*side.pool));
  check(side.transport->submit(kPeer, read.operation) == Status::kOk, "a read is taken");
  check(side.wait(11) == Status::kOk, "a read succeeds");
  check(side.done[11].bytes == read.operation.transform->bytes_per_block() * 4, "its bytes are counted");
  check(bytes_in(*side.pool) == expected, "a read brings what the layouts say");

  Request write(side, peer, remote.layout, Direction::kWrite, 12);
  write.set_blocks({1, 5, 3});
  write.operation.integrity = integrity;
  write.operation.reader = Reader::kLater;
  const std::string words = "three blocks";
  write.operation.notification = {reinterpret_cast<const uint8_t*>(words.data()), words.size()};
  const std::vector<uint8_t> written = write.apply(bytes_in(*side.pool), pattern(remote.layout.pool_bytes()));
  check(side.transport->submit(kPeer, write.operation) == Status::kOk, "a write is taken");
  const Status outcome = side.wait(12);
  check(outcome == Status::kOk, std::string("a write succeeds, not: ") + status_name(outcome));
  // What came before the peer knew us was kept for it.
  peer.greet(side.described(), "hello");
  const std::vector<uint8_t> told = peer.told();
  check(std::string(told.begin(), told.end()) == words, "the peer is told");
  check(peer.dump() == written, "a write brings what the layouts say, and touches nothing else");
  check(remote.table == TableKind::kNone || peer.frees_all(), "no operation is left in a block");
}

void generations_move_on(MakeTransport make, bool is_wrapped) {
  const PeerSetup setup{make, opaque(uint64_t{1} << 20, 32), is_wrapped, TableKind::kShared};
  PeerProcess peer(setup);
  Side side(setup);
  side.add(peer);
  std::vector<uint32_t> even;
  for (uint32_t block = 0; block < 32; block += 2) even.push_back(block);
  Request first(side, peer, setup.layout, Direction::kRead, 1);
  first.set_blocks({0});
  check(side.transport->submit(kPeer, first.operation) == Status::kOk && side.wait(1) == Status::kOk, "one block");
  Request read(side, peer, setup.layout, Direction::kRead, 2);
  read.set_blocks(even);
  check(side.transport->submit(kPeer, read.operation) == Status::kOk, "a read is taken");
  side.progress();
  check(!side.done.contains(2), "the read takes more than one slice");
  peer.renew(30);
  check(side.wait(2) == Status::kStale, "a read whose block has gone to another is stale");
  Request again(side, peer, setup.layout, Direction::kRead, 3);
  again.set_blocks(even);
  check(side.transport->submit(kPeer, again.operation) == Status::kOk && side.wait(3) == Status::kStale, "from the first on");
  Request write(side, peer, setup.layout, Direction::kWrite, 4);
  write.set_blocks({30});
  check(side.transport->submit(kPeer, write.operation) == Status::kOk && side.wait(4) == Status::kStale, "a write too");
  Request ready(side, peer, setup.layout, Direction::kWrite, 5);
  ready.set_blocks({1, 2});
  check(side.transport->submit(kPeer, ready.operation) == Status::kOk && side.wait(5) == Status::kNotAllowed,
        "a ready block is not written");
  Request blind(side, peer, setup.layout, Direction::kRead, 6);
  blind.peer_generations.clear();
  blind.set_blocks({0});
  check(side.transport->submit(kPeer, blind.operation) == Status::kOk && side.wait(6) == Status::kInvalid,
        "without generations nothing is read");
  check(peer.frees_all(), "no operation is left in a block");
}

void ends_early(MakeTransport make, bool is_wrapped) {
  const PeerSetup setup{make, opaque(uint64_t{1} << 20, 32), is_wrapped, TableKind::kShared};
  PeerProcess peer(setup);
  Side side(setup);
  side.add(peer);
  std::vector<uint32_t> odd;
  for (uint32_t block = 1; block < 32; block += 2) odd.push_back(block);
  std::vector<std::unique_ptr<Request>> requests;
  for (uint64_t id = 1; id <= 3; id++) {
    requests.push_back(std::make_unique<Request>(side, peer, setup.layout, id % 2 == 0 ? Direction::kWrite : Direction::kRead, id));
    requests.back()->set_blocks(odd);
    if (id == 3) requests.back()->operation.deadline_ns = 1;
    check(side.transport->submit(kPeer, requests.back()->operation) == Status::kOk, "taken");
  }
  check(side.transport->submit(kPeer, requests[0]->operation) == Status::kInvalid, "one id, one operation");
  side.transport->cancel(1);
  side.transport->cancel(77);
  check(side.wait(1) == Status::kCancelled && side.wait(3) == Status::kDeadline, "cancelled, and too late");
  check(side.wait(2) == Status::kOk, "the others go on");
  requests[0]->operation.id = 4;
  requests[0]->operation.remote_pool = 99;
  check(side.transport->submit(kPeer, requests[0]->operation) == Status::kUnsupported, "a pool that is not shared goes another way");
  check(side.transport->remove_pool(side.pool.get()) == Status::kNotFound, "a pool that was not added");
  check(peer.frees_all(), "no operation is left in a block");

  peer.greet(side.described(), "hello");
  side.until([&] { return !side.host.notifications.empty(); }, "the peer's words");
  check(side.host.notifications[0].peer == kPeer && side.host.notifications[0].bytes.size() == 5, "from whom");
}

void killed(MakeTransport make, bool is_wrapped) {
  const PeerSetup setup{make, opaque(uint64_t{1} << 20, 32), is_wrapped, TableKind::kShared};
  for (const bool is_started : {true, false}) {
    PeerProcess peer(setup);
    Side side(setup);
    side.add(peer);
    Request one(side, peer, setup.layout, Direction::kRead, 1);
    one.set_blocks({0});
    check(side.transport->submit(kPeer, one.operation) == Status::kOk && side.wait(1) == Status::kOk, "one block");
    std::vector<std::unique_ptr<Request>> requests;
    for (uint64_t id = 2; id < 10; id++) {
      const bool is_read = id % 2 == 0;
      requests.push_back(std::make_unique<Request>(side, peer, setup.layout, is_read ? Direction::kRead : Direction::kWrite, id));
      std::vector<uint32_t> blocks;
      for (uint32_t block = is_read ? 0 : 1; block < 32; block += 2) blocks.push_back(block);
      requests.back()->set_blocks(blocks);
      check(side.transport->submit(kPeer, requests.back()->operation) == Status::kOk, "taken");
    }
    if (is_started) side.progress();
    peer.kill_now();
    const uint64_t begin = side.host.now_ns();
    for (uint64_t id = 2; id < 10; id++) check(side.wait(id) == Status::kPeerLost, "operations of a killed peer are lost");
    check(side.host.now_ns() - begin < uint64_t{kPeerLossMs} * 1'000'000, "and soon");
    check(side.host.lost.size() == 1, "its loss is told once");
    check(side.transport->submit(kPeer, one.operation) == Status::kPeerLost, "it stays lost");
    check(side.transport->notify(kPeer, {}) == Status::kPeerLost, "and is told nothing");
    side.transport->remove_peer(kPeer);
    check(side.transport->submit(kPeer, one.operation) == Status::kNotFound, "until it is forgotten");
  }
}

}  // namespace

void host_transports() {
  const Layout nhd = paged(InnerOrder::kNhd, 8, 0, 1, 8);
  const Layout hnd = paged(InnerOrder::kHnd, 8, 0, 1, 8);
  const Layout slice = paged(InnerOrder::kNhd, 4, 1, 2, 8);
  for (const MakeTransport make : {MakeTransport{ShmTransport::create}, MakeTransport{CmaTransport::create}}) {
    const bool is_wrapped = make == MakeTransport{CmaTransport::create};
    if (is_wrapped && !CmaTransport::probe().available) {
      std::printf("cma is not tested: %s\n", CmaTransport::probe().reason.c_str());
      continue;
    }
    moves({make, nhd, is_wrapped, TableKind::kNone}, hnd, Integrity::kOff);
    moves({make, slice, is_wrapped, TableKind::kShared}, nhd, Integrity::kFull);
    moves({make, hnd, is_wrapped, TableKind::kPrivate}, slice, Integrity::kSample);
    generations_move_on(make, is_wrapped);
    ends_early(make, is_wrapped);
    killed(make, is_wrapped);
  }
}

}  // namespace millrace::kv::test
