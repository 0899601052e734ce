// What ways to a peer are measured to cost, against ways whose latency and rate are known, and that an agent leaves a
// transport that says more of itself than it keeps.
#include <deque>

#include "measured_cost.h"
#include "memory_transport.h"
#include "node.h"

namespace millrace::kv::test {
namespace {

constexpr uint64_t kMillisecond = 1'000'000;

constexpr uint64_t kLargeLeast = 16 << 20;

// Transfers in turns on a way of this latency and rate: all of a batch begin together, and share the rate.
void measure(std::mt19937& random, MeasuredCost& cost, uint64_t latency_ns, double rate, uint64_t* now) {
  for (int round = 0; round < 200; round++) {
    const bool is_small = pick(random, 0, 2) == 0;
    const uint32_t batch = is_small ? 1 : pick(random, 1, 6);
    const uint64_t bytes = is_small ? pick(random, 1, 16) * 4096 : uint64_t{pick(random, 1, 4)} * kLargeLeast;
    const uint64_t begun = *now;
    std::vector<bool> alone;
    for (uint32_t i = 0; i < batch; i++) alone.push_back(cost.begin());
    check(alone[0] && (batch == 1 || !alone[1]), "the first has the way to itself when it begins");
    *now += latency_ns + static_cast<uint64_t>(static_cast<double>(bytes * batch) / rate * 1e9);
    // A thread that waited for a processor.
    if (is_small && pick(random, 0, 3) == 0) *now += pick(random, 1, 50) * kMillisecond / 10;
    for (uint32_t i = 0; i < batch; i++) cost.end(begun, *now, pick(random, 0, 20) == 0 ? 0 : bytes, alone[i]);
  }
}

void model_random(std::mt19937& random, uint32_t cases) {
  for (uint32_t i = 0; i < cases; i++) {
    const Cost said{pick(random, 1'000, 50'000), uint64_t{pick(random, 1, 20)} * 1'000'000'000};
    const uint64_t latency_ns = pick(random, 1, 200) * 1'000;
    const double rate = pick(random, 50, 300) * 1e8;
    MeasuredCost cost;
    uint64_t now = uint64_t{pick(random, 0, 1000)} * kMillisecond;
    check(cost.expected(said, now).bytes_per_second == said.bytes_per_second, "what is said, before anything was seen");
    measure(random, cost, latency_ns, rate, &now);
    const Cost seen = cost.expected(said, now);
    // The shortest bear their latency, too; a transfer in twenty has failed, and its time counts for the others.
    const auto large = static_cast<double>(kLargeLeast);
    const double least = 0.8 * large / (large / rate + static_cast<double>(latency_ns) / 1e9);
    const auto measured = static_cast<double>(seen.bytes_per_second);
    check(measured > least && measured < rate * 1.1, "the rate, " + std::to_string(rate));
    check(seen.latency_ns >= latency_ns && seen.latency_ns < latency_ns + 300'000, "the latency, " + std::to_string(latency_ns));
    const Cost later = cost.expected(said, now + 60'000 * kMillisecond);
    check(later.latency_ns == said.latency_ns && later.bytes_per_second == said.bytes_per_second, "what was seen fades");
  }
}

// A transport of this process that says that it costs nothing, and tells completions late.
class Boaster final : public Transport {
 public:
  explicit Boaster(std::unique_ptr<Transport> inner, TransportHost* host) : inner_(std::move(inner)), host_(host) {}
  static TransportInfo probe() {
    TransportInfo info = memory_transport({}).probe();
    info.name = "boast";
    return info;
  }
  const TransportInfo& info() const override { return info_; }
  Status add_pool(Pool* pool) override { return inner_->add_pool(pool); }
  Status remove_pool(Pool* pool) override { return inner_->remove_pool(pool); }
  void describe(std::vector<uint8_t>* out) override { inner_->describe(out); }
  Status add_peer(uint32_t peer, std::span<const uint8_t> described, std::string* reason) override {
    return inner_->add_peer(peer, described, reason);
  }
  void remove_peer(uint32_t peer) override { inner_->remove_peer(peer); }
  Cost cost(uint32_t, const Operation&, uint64_t) override { return {1, 1'000'000'000'000}; }
  Status submit(uint32_t peer, const Operation& operation) override { return inner_->submit(peer, operation); }
  void cancel(uint64_t id) override { inner_->cancel(id); }
  Status notify(uint32_t peer, std::span<const uint8_t> bytes) override { return inner_->notify(peer, bytes); }
  bool progress(std::vector<Completion>* completions) override {
    std::vector<Completion> done;
    const bool has_worked = inner_->progress(&done);
    for (const Completion& completion : done) late_.push_back({host_->now_ns() + 20 * kMillisecond, completion});
    for (; !late_.empty() && late_.front().first <= host_->now_ns(); late_.pop_front()) completions->push_back(late_.front().second);
    return has_worked || !completions->empty();
  }
  // Its completions are not announced.
  int wait_descriptor() override { return -1; }

 private:
  const TransportInfo info_ = probe();
  std::unique_ptr<Transport> inner_;
  TransportHost* host_;
  std::deque<std::pair<uint64_t, Completion>> late_;
};

TransportMaker boaster() {
  return {&Boaster::probe, [](const TransportSetup& setup, std::string* error) -> std::unique_ptr<Transport> {
            TransportSetup other = setup;
            // Agents of one process find each other by it.
            other.uuid[0] ^= 1;
            return std::make_unique<Boaster>(memory_transport({}).make(other, error), setup.host);
          }};
}

void agent_picks() {
  Node nodes[2];
  for (Node& node : nodes) {
    AgentOptions options;
    options.name = "node";
    options.transports = {"memory", "boast"};
    options.more_transports = {memory_transport({}), boaster()};
    std::string error;
    check(Agent::create(options, &node.agent, &error) == Status::kOk, error);
    std::unique_ptr<Pool> pool = make_pool(4, 4096, false);
    node.pool = pool.get();
    check(node.agent->add_pool(std::move(pool), &node.pool_id, &error) == Status::kOk, error);
  }
  const uint32_t peer = nodes[0].meet(nodes[1]);
  for (uint32_t i = 0; i <= MeasuredCost::kSmallLeast; i++) {
    TransferRequest request;
    request.peer = peer;
    request.local_pool = nodes[0].pool_id;
    request.remote_pool = nodes[1].pool_id;
    request.local_blocks = request.remote_blocks = {i % 4};
    std::string error;
    const int64_t id = nodes[0].agent->submit(std::move(request), &error);
    check(id > 0, error);
    const Event done = nodes[0].completion(id);
    const std::string wanted = i < MeasuredCost::kSmallLeast ? "boast" : "memory";
    check(done.status == Status::kOk && wanted == done.transport, "transfer " + std::to_string(i) + " goes by " + wanted);
  }
}

}  // namespace

void cost_checks(std::mt19937& random, uint32_t cases) {
  model_random(random, cases);
  agent_picks();
}

}  // namespace millrace::kv::test
