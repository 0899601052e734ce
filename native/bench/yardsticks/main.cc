// What the transfer engine is compared with, in native code: memcpy of the same list, bare calls of process_vm_readv, a writev
// loop over loopback; and the engine as a native caller has it. bench/transfer.js asks, one line at a time, and takes turns
// between these and its own transfers. A line is a command and its numbers; the answer is a line of numbers.
//
//   map SLOT BYTES PATH      large SLOT BYTES                     two kinds of memory for `copy`
//   copy SOURCE TARGET LISTS                                      seconds
//   neighbour BYTES          raw TARGET LISTS                     seconds of process_vm_readv
//   tcp PIECE STREAMS BYTES                                       seconds
//   engine TRANSPORT BLOCK_BYTES BLOCKS                           opens the engine, and closes the one before it
//   engine-read LISTS        memcpy-read LISTS                    seconds with an immediate reader
//   engine-spin TRANSFERS                                         p50, p99 and p99.9 in nanoseconds
//
// LISTS is block bytes, blocks of the pool, blocks of a batch, batches, first block of the orders.
#include <signal.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <sstream>

#include "engine.h"
#include "memory.h"
#include "sockets.h"

using namespace millrace::bench;

namespace {

constexpr size_t kSlots = 4;

Lists read_lists(std::istream& words) {
  Lists lists{};
  words >> lists.block_bytes >> lists.blocks >> lists.count >> lists.batches >> lists.first;
  if (words.fail()) stop("a list is five numbers");
  lists.make_orders();
  return lists;
}

struct Yardsticks {
  uint8_t* slots[kSlots] = {};
  Neighbour neighbour;
  std::unique_ptr<Engine> engine;

  uint8_t*& slot(std::istream& words) {
    size_t number = kSlots;
    words >> number;
    if (number >= kSlots) stop("a slot is a number from 0 to 3");
    return slots[number];
  }

  std::string copy(std::istream& words) {
    const uint8_t* const source = slot(words);
    uint8_t* const target = slot(words);
    const Lists lists = read_lists(words);
    const double begin = now_seconds();
    for (uint32_t batch = 0; batch < lists.batches; batch++) copy_list(lists, batch, source, target);
    return std::to_string(now_seconds() - begin);
  }

  std::string raw(std::istream& words) {
    uint8_t* const target = slot(words);
    const Lists lists = read_lists(words);
    const double begin = now_seconds();
    for (uint32_t batch = 0; batch < lists.batches; batch++) read_neighbour(lists, batch, neighbour, target);
    return std::to_string(now_seconds() - begin);
  }

  std::string spin(std::istream& words) {
    uint32_t transfers = 0;
    words >> transfers;
    if (transfers < 1) stop("at least one transfer");
    const std::vector<double> waits = engine->completions(transfers);
    const auto at = [&](double share) { return std::to_string(waits[static_cast<size_t>(share * static_cast<double>(transfers - 1))]); };
    return at(0.5) + " " + at(0.99) + " " + at(0.999);
  }

  std::string answer(const std::string& command, std::istream& words) {
    uint64_t bytes = 0, piece = 0;
    uint32_t number = 0;
    std::string text;
    if (command == "copy") return copy(words);
    if (command == "raw") return raw(words);
    if (command == "engine-read") return std::to_string(engine->read_by_engine(read_lists(words)));
    if (command == "memcpy-read") return std::to_string(engine->read_by_memcpy(read_lists(words)));
    if (command == "engine-spin") return spin(words);
    if (command == "tcp") {
      words >> piece >> number >> bytes;
      return std::to_string(stream_seconds(piece, number, bytes));
    }
    if (command == "map") {
      uint8_t*& place = slot(words);
      words >> bytes >> text;
      place = map_file(text, bytes);
    } else if (command == "large") {
      uint8_t*& place = slot(words);
      words >> bytes;
      place = large_pages(bytes);
    } else if (command == "neighbour") {
      words >> bytes;
      neighbour = spawn_neighbour(bytes);
    } else if (command == "engine") {
      words >> text >> bytes >> number;
      engine.reset();
      engine = std::make_unique<Engine>(text, bytes, number);
    } else {
      stop("unknown command " + command);
    }
    return "0";
  }
};

}  // namespace

int main() {
  signal(SIGPIPE, SIG_IGN);
  signal(SIGCHLD, SIG_DFL);
  Yardsticks yardsticks;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    std::cout << yardsticks.answer(command, words) << std::endl;
  }
  yardsticks.engine.reset();
  if (yardsticks.neighbour.pid > 0) kill(yardsticks.neighbour.pid, SIGKILL);
}
