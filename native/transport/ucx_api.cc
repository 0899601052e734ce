// Opens libucp and finds its functions. See ucx_api.h.
#include "ucx_api.h"

#include <dirent.h>
#include <dlfcn.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdlib>
#include <vector>

namespace millrace::kv {
namespace {

struct Loaded {
  UcxApi api{};
  bool is_whole = false;
  std::string reason;
};

// Of libucs. What it has to say goes to standard output by default, into the midst of a program's answer.
int log_to_stderr(const char*, unsigned, const char*, int, const void*, const char* format, va_list words) {
  char text[1024];
  std::vsnprintf(text, sizeof text, format, words);
  std::fprintf(stderr, "UCX: %s\n", text);
  return kUcsLogStop;
}

// Loading the library put handlers of its own on the signals of crashes, and its words on standard output: the program's
// come back, unless its user has said what UCX is to do.
void restrain(void* ucs) {
  const auto disable_signals = reinterpret_cast<void (*)()>(dlsym(ucs, "ucs_debug_disable_signals"));
  if (disable_signals != nullptr && std::getenv("UCX_HANDLE_ERRORS") == nullptr) disable_signals();
  const auto push_handler = reinterpret_cast<void (*)(UcsLogHandler)>(dlsym(ucs, "ucs_log_push_handler"));
  if (push_handler != nullptr && std::getenv("UCX_LOG_FILE") == nullptr) push_handler(log_to_stderr);
}

template <class Function>
void find(void* library, const char* name, Function* out, Loaded* loaded) {
  *out = reinterpret_cast<Function>(dlsym(library, name));
  if (*out == nullptr && loaded->reason.empty()) loaded->reason = std::string("libucp.so.0 has no ") + name;
}

void find_all(void* ucp, void* ucs, Loaded* loaded) {
  UcxApi& api = loaded->api;
  const auto in_ucp = [&](const char* name, auto* out) { find(ucp, name, out, loaded); };
  in_ucp("ucp_get_version", &api.get_version);
  in_ucp("ucp_config_read", &api.config_read);
  in_ucp("ucp_config_modify", &api.config_modify);
  in_ucp("ucp_config_print", &api.config_print);
  in_ucp("ucp_config_release", &api.config_release);
  in_ucp("ucp_init_version", &api.init);
  in_ucp("ucp_context_print_info", &api.context_print);
  in_ucp("ucp_worker_create", &api.worker_create);
  in_ucp("ucp_worker_destroy", &api.worker_destroy);
  in_ucp("ucp_worker_get_address", &api.worker_get_address);
  in_ucp("ucp_worker_release_address", &api.worker_release_address);
  in_ucp("ucp_worker_get_efd", &api.worker_get_efd);
  in_ucp("ucp_worker_arm", &api.worker_arm);
  in_ucp("ucp_worker_progress", &api.worker_progress);
  in_ucp("ucp_worker_set_am_recv_handler", &api.worker_set_am_handler);
  in_ucp("ucp_ep_create", &api.endpoint_create);
  in_ucp("ucp_ep_close_nbx", &api.endpoint_close);
  in_ucp("ucp_ep_flush_nbx", &api.endpoint_flush);
  in_ucp("ucp_ep_print_info", &api.endpoint_print);
  in_ucp("ucp_mem_map", &api.memory_map);
  in_ucp("ucp_mem_unmap", &api.memory_unmap);
  in_ucp("ucp_mem_query", &api.memory_query);
  in_ucp("ucp_rkey_pack", &api.rkey_pack);
  in_ucp("ucp_rkey_buffer_release", &api.rkey_buffer_release);
  in_ucp("ucp_ep_rkey_unpack", &api.rkey_unpack);
  in_ucp("ucp_rkey_ptr", &api.rkey_pointer);
  in_ucp("ucp_rkey_destroy", &api.rkey_destroy);
  in_ucp("ucp_put_nbx", &api.put);
  in_ucp("ucp_get_nbx", &api.get_bytes);
  in_ucp("ucp_am_send_nbx", &api.am_send);
  in_ucp("ucp_request_free", &api.request_free);
  find(ucs, "ucs_status_string", &api.status_string, loaded);
}

// While it loads, libucs writes jumps of its own into the memory functions of libc (mmap, madvise, …), for the whole process
// and for ever, unless UCX_MEM_EVENTS=n. We register memory by hand and need none of it. setenv could move the environment
// under another thread that reads it: this shows another list of the same words and frees nothing.
void* open_without_hooks(const char* library) {
  static std::vector<char*>* shown = nullptr;
  char** const before = environ;
  if (std::getenv("UCX_MEM_EVENTS") == nullptr) {
    static char no_hooks[] = "UCX_MEM_EVENTS=n";
    shown = new std::vector<char*>{no_hooks};
    for (char** word = before; word != nullptr && *word != nullptr; word++) shown->push_back(*word);
    shown->push_back(nullptr);
    environ = shown->data();
  }
  void* const opened = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  // Not where somebody has changed it meanwhile, who copied what was there.
  if (shown != nullptr && environ == shown->data()) environ = before;
  return opened;
}

Loaded load() {
  Loaded loaded;
  void* const ucp = open_without_hooks("libucp.so.0");
  void* const ucs = ucp == nullptr ? nullptr : dlopen("libucs.so.0", RTLD_NOW | RTLD_LOCAL);
  if (ucs == nullptr) {
    const char* const why = dlerror();
    loaded.reason = std::string("UCX is not installed (Debian: libucx0): ") + (why == nullptr ? "libucs.so.0" : why);
    return loaded;
  }
  restrain(ucs);
  find_all(ucp, ucs, &loaded);
  if (!loaded.reason.empty()) return loaded;
  uint32_t* const version = loaded.api.version;
  loaded.api.get_version(&version[0], &version[1], &version[2]);
  loaded.is_whole = version[0] == kUcpApiMajor && version[1] >= kUcpApiMinor;
  if (!loaded.is_whole) {
    loaded.reason = "UCX must be of version 1.13 or a later 1.x; found " + std::to_string(version[0]) + "." +
                    std::to_string(version[1]) + "." + std::to_string(version[2]);
  }
  return loaded;
}

}  // namespace

const UcxApi* UcxApi::get(std::string* reason) {
  static const Loaded* const loaded = new Loaded(load());
  if (!loaded->is_whole) *reason = loaded->reason;
  return loaded->is_whole ? &loaded->api : nullptr;
}

bool has_rdma_device() {
  DIR* const folder = opendir("/sys/class/infiniband");
  if (folder == nullptr) return false;
  bool is_found = false;
  while (const dirent* const entry = readdir(folder)) is_found = is_found || entry->d_name[0] != '.';
  closedir(folder);
  return is_found;
}

}  // namespace millrace::kv
