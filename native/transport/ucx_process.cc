// Reads /proc. See ucx_process.h.
#include "ucx_process.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

namespace millrace::kv {
namespace {

std::string text_of(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return "";
  char text[1024];
  const ssize_t size = read(descriptor, text, sizeof text);
  close(descriptor);
  return size > 0 ? std::string(text, static_cast<size_t>(size)) : "";
}

}  // namespace

uint64_t process_start_time(uint32_t pid) {
  const std::string said = text_of("/proc/" + std::to_string(pid) + "/stat");
  // The second field is a name in parentheses, which may contain anything; the 20th after it is the time.
  size_t at = said.rfind(')');
  if (at == std::string::npos) return 0;
  for (int field = 0; field < 20 && at != std::string::npos; field++) at = said.find(' ', at + 1);
  return at == std::string::npos ? 0 : std::strtoull(said.c_str() + at, nullptr, 10);
}

TcpUuid host_boot() {
  TcpUuid boot{};
  const std::string said = text_of("/proc/sys/kernel/random/boot_id");
  size_t digits = 0;
  for (const char c : said) {
    if (digits == 2 * boot.size() || std::strchr("0123456789abcdef", c) == nullptr || c == 0) continue;
    const int digit = c <= '9' ? c - '0' : c - 'a' + 10;
    boot[digits / 2] = static_cast<uint8_t>(boot[digits / 2] << 4 | digit);
    digits++;
  }
  return boot;
}

uint64_t pid_namespace() {
  struct stat facts;
  return stat("/proc/self/ns/pid", &facts) == 0 ? static_cast<uint64_t>(facts.st_ino) : 0;
}

}  // namespace millrace::kv
