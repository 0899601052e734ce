// Who a process is, in words that another process of its host can check. Any thread.
#pragma once

#include <cstdint>

#include "tcp_wire.h"

namespace millrace::kv {

// In ticks since the host was started; 0 where there is no such process, or /proc does not show it.
uint64_t process_start_time(uint32_t pid);

// The run of the kernel, and the pid namespace; zeros where they cannot be read.
TcpUuid host_boot();
uint64_t pid_namespace();

}  // namespace millrace::kv
