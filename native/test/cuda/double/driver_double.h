// Knobs of the driver double: see driver_double.cc.
#pragma once

#include <cstdint>

extern "C" {
// Streams stand still until they are let go again.
void double_hold(bool holds);
// The next call of this function fails with this result.
void double_fail_next(const char* function, int result);
// From here on the device's work is thrown away, and calls about it fail with 700, until `double_reset`.
void double_break(int device);
// Whether the driver takes batches of copies, and its streams can write words (of devices that are opened after this).
void double_set_newer(bool has_batches, bool has_word_writes);
// Nothing held, broken or to fail; faults forgotten.
void double_reset();
// Accesses to memory that was not the device's to touch: freed, closed, never registered, or out of bounds; and calls
// without a context, or that would break another thread's capture of a graph.
uint32_t double_faults();
// Calls of this function so far.
uint32_t double_calls(const char* function);
// What is allocated, opened or registered, and contexts on this thread's stack.
uint32_t double_open_things();
}
