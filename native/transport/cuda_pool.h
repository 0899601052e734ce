// Pools in the memory of a device (K0), for the faces of the engine. Any thread; they wait for the driver.
#pragma once

#include <memory>
#include <string>

#include "pool.h"

namespace millrace::kv {

// Zeroed memory of the device, such that other processes can open it where the driver has a way. kUnsupported without a
// driver, kNotFound for a device that is not there, kSystem when there is not so much memory.
Status create_device_pool(int32_t device, uint64_t bytes, std::unique_ptr<Pool>* out, std::string* error);

// Memory of the caller, as torch's, who keeps it until the pool is closed. kInvalid for what is not this device's memory.
Status register_device_pool(int32_t device, uint64_t address, uint64_t bytes, std::unique_ptr<Pool>* out, std::string* error);

}  // namespace millrace::kv
