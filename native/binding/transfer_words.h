// What JS hands the transfer engine as words (transfer/descriptor.ts), read into the core's own types. Every word is
// checked: kInvalid names the field and what is allowed.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "agent.h"

namespace millrace {

// Of a pool of `pool_bytes`.
kv::Status read_layout(std::span<const uint32_t> words, uint64_t pool_bytes, const std::string& model, kv::Layout* out,
                       std::string* error);
// `now_ns` of CLOCK_MONOTONIC, to which the request's deadline is relative.
kv::Status read_request(std::span<const uint32_t> words, std::span<const uint8_t> notification, uint64_t now_ns,
                        kv::TransferRequest* out, std::string* error);

}  // namespace millrace
