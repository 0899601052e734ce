// The ports of an agent as its progress thread serves them (port.h): submissions in, cancels, their end. A transfer of a port
// is like any other, but that its completion goes to the port, which has room for it.
#include <fcntl.h>

#include <cerrno>
#include <cstring>

#include "agent_state.h"
#include "port.h"

namespace millrace::kv {
namespace {

// Of one port in a turn, so that the others have theirs.
constexpr uint32_t kEntriesAtOnce = 64;

}  // namespace

Status Agent::add_port(std::shared_ptr<Port> port, std::string* error) {
  Status status = Status::kClosed;
  *error = "the agent is closed";
  state_->command([&] {
    status = state_->ports.size() < kPortsMax ? Status::kOk : Status::kFull;
    if (status != Status::kOk) {
      *error = "ports: at most " + std::to_string(kPortsMax);
      return;
    }
    port->attach(state_.get());
    state_->ports.push_back(std::move(port));
  });
  return status;
}

void Agent::State::wake_thread() { kick(); }

Status Agent::State::map_pool(uint32_t id, std::unique_ptr<Pool>* out, std::string* error) {
  const std::shared_ptr<const Tables> now = tables();
  const auto found = now->pools.find(id);
  if (found == now->pools.end()) {
    *error = "no pool " + std::to_string(id) + " here";
    return Status::kNotFound;
  }
  const Pool& pool = *found->second->pool;
  if (pool.descriptor() < 0) {
    *error = "pool " + std::to_string(id) + " is over memory of the caller";
    return Status::kUnsupported;
  }
  // The pool lives as long as the tables that we hold.
  const int descriptor = fcntl(pool.descriptor(), F_DUPFD_CLOEXEC, 0);
  if (descriptor >= 0) return Pool::map(descriptor, pool.bytes(), out, error);
  *error = std::string("no descriptor: ") + std::strerror(errno);
  return Status::kSystem;
}

bool Agent::State::take_ports() {
  bool has_worked = false;
  for (size_t i = 0; i < ports.size();) {
    Port& port = *ports[i];
    if (port.has_work()) has_worked |= serve_port(port);
    if (!port.is_closing() || port.in_flight() > 0) {
      i++;
      continue;
    }
    end_port(i);
  }
  return has_worked;
}

bool Agent::State::serve_port(Port& port) {
  if (port.is_closing()) {
    port.set_stopped();
    for (const uint32_t slot : port.slots_in_flight()) stop_transfer(slot, Status::kCancelled);
    return false;
  }
  for (const uint32_t slot : port.take_cancels()) stop_transfer(slot, Status::kCancelled);
  Port::Taken next;
  uint32_t taken = 0;
  for (; taken < kEntriesAtOnce && port.take(now_ns(), &next); taken++) {
    uint32_t slot;
    if (next.status == Status::kOk) next.status = post(std::move(next.request), &slot, &next.error);
    if (next.status != Status::kOk) {
      Event event;
      event.status = next.status;
      event.posted_ns = event.done_ns = now_ns();
      port.complete(next.tag, event, next.error);
      continue;
    }
    records[slot].port = &port;
    records[slot].port_tag = next.tag;
    port.begin(next.tag, slot);
    begin(slot);
  }
  return taken > 0;
}

void Agent::State::end_port(size_t index) {
  ports[index]->end();
  ports.erase(ports.begin() + static_cast<ptrdiff_t>(index));
  // The owner lets go of its memory.
  if (options.wake) options.wake();
}

bool Agent::State::ports_may_sleep() {
  for (const auto& port : ports) port->set_sleeping(true);
  for (const auto& port : ports)
    if (port->has_work()) return false;
  return true;
}

void Agent::State::ports_awake() {
  for (const auto& port : ports) port->set_sleeping(false);
}

}  // namespace millrace::kv
