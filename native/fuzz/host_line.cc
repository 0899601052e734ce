// A whole shm or cma transport and a stranger on its control line, who calls it or whom it has called. First byte: bit 0 we
// are the one that was called, bit 1 our part of the handshake is left out, bit 2 cma. Each step: u8 message, u8 id, u8 what
// goes along, u16 n, n bytes. Message 0 gives the transport an operation; 255 writes the bytes into the block table that is
// sent as ours; of any other the low four bits of the third byte name up to two descriptors. Whatever comes, every operation
// ends once and no block stays counted in. The address of a cma pool is any: reads of it fail or do not.
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "cma_transport.h"
#include "line.h"
#include "shm_transport.h"

namespace {

using namespace millrace::kv;
using namespace millrace::kv::fuzz;

struct World {
  Host host;
  bool is_cma;
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  std::unique_ptr<Pool> pool = make_pool();
  // What we send as ours.
  std::unique_ptr<Pool> theirs = make_pool();
  std::span<uint8_t> table_bytes;
  int descriptors[4] = {-1, -1, -1, -1};
  HostUuid uuid{9};
  int listener = -1;
  std::unique_ptr<Transport> transport;
  HostDescribed described{};

  explicit World(bool cma) : is_cma(cma) {
    std::string error;
    expect((cma ? CmaTransport::create : ShmTransport::create)(&host, &transport, &error) == Status::kOk);
    expect(transport->add_pool(pool.get()) == Status::kOk);
    std::vector<uint8_t> bytes;
    transport->describe(&bytes);
    std::memcpy(&described, bytes.data(), sizeof described);
    descriptors[1] = theirs->descriptor();
    descriptors[2] = make_table();
    descriptors[3] = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    expect(descriptors[3] >= 0 && ftruncate(descriptors[3], kBlocks * kBlockBytes) == 0);
    listener = HostSocket::listen_at(name_of(uuid));
    expect(listener >= 0);
  }

  // A table as it should be, that can still be written here.
  int make_table() {
    std::string error;
    std::unique_ptr<TableMemory> sound;
    expect(TableMemory::create(kBlocks, &sound, &error) == Status::kOk);
    const int descriptor = memfd_create("table", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    expect(descriptor >= 0 && ftruncate(descriptor, static_cast<off_t>(sound->bytes())) == 0);
    void* mapped = mmap(nullptr, sound->bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    void* from = mmap(nullptr, sound->bytes(), PROT_READ, MAP_SHARED, sound->descriptor(), 0);
    expect(mapped != MAP_FAILED && from != MAP_FAILED);
    std::memcpy(mapped, from, sound->bytes());
    munmap(from, sound->bytes());
    expect(fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) == 0);
    table_bytes = {static_cast<uint8_t*>(mapped), sound->bytes()};
    return descriptor;
  }

  std::string name_of(const HostUuid& of) const {
    std::string name = is_cma ? "millrace-cma-" : "millrace-shm-";
    for (const uint8_t byte : of) {
      name += "0123456789abcdef"[byte >> 4];
      name += "0123456789abcdef"[byte & 15];
    }
    return name;
  }

  int call() const { return HostSocket::connect_to(name_of(described.uuid)); }

  // Ours is a description of the transport itself, but for who listens.
  int be_called() const {
    HostDescribed ours = described;
    ours.uuid = uuid;
    ours.uuid_address = reinterpret_cast<uintptr_t>(uuid.data());
    ours.pools = 0;
    std::string reason;
    expect(transport->add_peer(kPeer, bytes_of(ours), &reason) == Status::kOk);
    return accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  }
};

void step(World& world, HostSocket& line, Operations& operations, WordReader& in) {
  const auto message = in.take<uint8_t>();
  const auto id = in.take<uint8_t>();
  const auto along = in.take<uint8_t>();
  const std::span<const uint8_t> payload = in.bytes(std::min<size_t>(in.take<uint16_t>(), in.left()));
  if (message == 0) {
    // What cma writes to an address of the input would be memory of this process.
    const Direction direction = world.is_cma || (id & 1) == 0 ? Direction::kRead : Direction::kWrite;
    operations.submit(direction, along, (id & 2) == 0);
  } else if (message == 255) {
    const size_t at = (size_t{id} << 8 | along) % world.table_bytes.size();
    std::memcpy(world.table_bytes.data() + at, payload.data(), std::min(payload.size(), world.table_bytes.size() - at));
  } else {
    std::vector<int> descriptors;
    for (const int which : {along & 3, along >> 2 & 3})
      if (world.descriptors[which] >= 0) descriptors.push_back(world.descriptors[which]);
    line.send(static_cast<HostMessage>(message), id, payload, {}, descriptors);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static World* const worlds[] = {new World(false), new World(true)};
  WordReader in(bytes, size);
  const auto how = in.take<uint8_t>();
  World& world = *worlds[how >> 2 & 1];
  const bool is_called = (how & 1) != 0;
  const std::vector<uint8_t> table(world.table_bytes.begin(), world.table_bytes.end());
  Operations operations(*world.transport, *world.pool);
  {
    HostSocket line(is_called ? world.be_called() : world.call(), world.epoll);
    const HostHello hello{kHostVersion, 0, {0xee}, world.described.token};
    if ((how & 2) == 0 && is_called) line.send(HostMessage::kWelcome, 0, world.uuid);
    if ((how & 2) == 0 && !is_called) line.send(HostMessage::kHello, 0, bytes_of(hello));
    while (in.left() >= 5) {
      step(world, line, operations, in);
      operations.progress();
      HostSocket::Incoming answer;
      while (line.receive(&answer) == HostSocket::Received::kMessage) continue;
    }
  }
  operations.progress();
  if (is_called) world.transport->remove_peer(kPeer);
  operations.progress();
  expect(operations.are_over());
  expect(world.transport->remove_pool(world.pool.get()) == Status::kOk);
  expect(world.transport->add_pool(world.pool.get()) == Status::kOk);
  std::memcpy(world.table_bytes.data(), table.data(), table.size());
  return 0;
}
