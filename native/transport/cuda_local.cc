// The list of this process's pools. See cuda_local.h.
#include "cuda_local.h"

#include <map>
#include <mutex>
#include <utility>

namespace millrace::kv {
namespace {

struct LocalPools {
  std::mutex lock;
  std::map<std::pair<HostUuid, uint32_t>, std::shared_ptr<LocalPool>> all;
};

LocalPools& local_pools() {
  static LocalPools* const pools = new LocalPools;
  return *pools;
}

}  // namespace

void share_local_pool(const HostUuid& agent, uint32_t pool, std::shared_ptr<LocalPool> local) {
  const std::lock_guard guard(local_pools().lock);
  local_pools().all[{agent, pool}] = std::move(local);
}

void drop_local_pool(const HostUuid& agent, uint32_t pool) {
  const std::lock_guard guard(local_pools().lock);
  local_pools().all.erase({agent, pool});
}

std::shared_ptr<LocalPool> find_local_pool(const HostUuid& agent, uint32_t pool) {
  const std::lock_guard guard(local_pools().lock);
  const auto found = local_pools().all.find({agent, pool});
  return found == local_pools().all.end() || !found->second->is_here() ? nullptr : found->second;
}

}  // namespace millrace::kv
