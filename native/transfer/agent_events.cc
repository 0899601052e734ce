// What the progress thread says to others: events to the poller, notifications to peers; and what it hears from transports.
#include "agent_state.h"

namespace millrace::kv {

void Agent::State::publish(Event event) {
  if (!events_waiting.empty()) {
    events_waiting.push_back(std::move(event));
    return;
  }
  const auto pushed = events->push(event);
  if (pushed == EventRing<Event>::Pushed::kFirst && options.wake) options.wake();
  if (pushed != EventRing<Event>::Pushed::kFull) return;
  events_waiting.push_back(std::move(event));
  events_pending.store(true, std::memory_order_seq_cst);
  // Once more, as the poller may have emptied the ring before it could see that more is to come.
  flush_events();
}

void Agent::State::flush_events() {
  while (!events_waiting.empty()) {
    const auto pushed = events->push(events_waiting.front());
    if (pushed == EventRing<Event>::Pushed::kFull) return;
    events_waiting.pop_front();
    if (events_waiting.empty()) events_pending.store(false, std::memory_order_seq_cst);
    if (pushed == EventRing<Event>::Pushed::kFirst && options.wake) options.wake();
  }
}

Pool* Agent::State::pool(uint32_t id) {
  const std::shared_ptr<const Tables> now = tables();
  const auto found = now->pools.find(id);
  return found == now->pools.end() ? nullptr : found->second->pool.get();
}

void Agent::State::notified(uint32_t peer, std::span<const uint8_t> bytes) {
  if (bytes.empty()) return;
  const auto kind = static_cast<Envelope>(bytes[0]);
  if (kind != Envelope::kCaller) return control(peer, kind, bytes.subspan(1));
  notes_received.fetch_add(1, std::memory_order_relaxed);
  const uint64_t size = bytes.size() - 1 + sizeof(Event);
  if (inbox_bytes.fetch_add(size, std::memory_order_relaxed) + size > kInboxBytesMax) {
    // Nobody polls, or the peer floods. To drop a notification unseen would leave somebody waiting; a lost peer is seen.
    inbox_bytes.fetch_sub(size, std::memory_order_relaxed);
    notes_dropped.fetch_add(1, std::memory_order_relaxed);
    return cut_off(peer, "its notifications are not polled: too many wait");
  }
  Event event;
  event.kind = EventKind::kNotification;
  event.peer = peer;
  event.done_ns = now_ns();
  event.transport = progressing >= 0 ? transports[progressing]->name.c_str() : nullptr;
  event.notification.assign(bytes.begin() + 1, bytes.end());
  publish(std::move(event));
}

void Agent::State::peer_lost(uint32_t peer, const std::string& why) {
  if (progressing >= 0) lost.push_back({peer, progressing, why});
}

void Agent::State::cut_off(uint32_t peer, const std::string& why) {
  for (size_t way = 0; way < transports.size(); way++) lost.push_back({peer, static_cast<int>(way), why});
}

void Agent::State::send(uint32_t peer, std::vector<uint8_t> bytes) {
  std::deque<std::vector<uint8_t>>& queue = outbox[peer];
  queue.push_back(std::move(bytes));
  if (queue.size() == kOutboxMax + 1) cut_off(peer, "it does not take what it is told");
}

// In order for each peer: what finds no room stays at the head.
bool Agent::State::flush_outbox() {
  bool has_sent = false;
  if (outbox.empty()) return false;
  const std::shared_ptr<const Tables> now = tables();
  for (auto it = outbox.begin(); it != outbox.end();) {
    auto& [peer, queue] = *it;
    const auto found = now->peers.find(peer);
    const uint32_t ways = found == now->peers.end() ? 0 : found->second->ways.load(std::memory_order_relaxed);
    while (!queue.empty()) {
      Status status = Status::kPeerLost;
      for (size_t way = 0; way < transports.size() && status != Status::kOk && status != Status::kFull; way++)
        if ((ways >> way & 1) != 0) status = transports[way]->transport->notify(peer, queue.front());
      if (status == Status::kFull) break;
      (status == Status::kOk ? notes_sent : notes_dropped).fetch_add(1, std::memory_order_relaxed);
      if (queue.front()[0] == static_cast<uint8_t>(Envelope::kCaller)) notes_pending.fetch_sub(1, std::memory_order_relaxed);
      queue.pop_front();
      has_sent = true;
    }
    it = queue.empty() ? outbox.erase(it) : std::next(it);
  }
  return has_sent;
}

}  // namespace millrace::kv
