// Shm and cma between two processes: reads and writes under layouts that differ, integrity, generations that move on under
// a read, grants, notifications, deadlines, cancelling, and a peer that is killed in the middle.
#include "cma_transport.h"
#include "host_side.h"
#include "shm_transport.h"

namespace millrace::kv::test {
namespace {

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
