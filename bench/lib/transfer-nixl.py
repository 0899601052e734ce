"""NIXL between two processes, for bench/transfer.js --nixl: what the transfer engine is compared with.

Speaks one line at a time, as native/bench/yardsticks/main.cc does. `open BLOCK_BYTES BLOCKS BATCH_BLOCKS OP` makes two agents
with the UCX backend and memory in large pages, one of them in a child, prepares a transfer for every batch and answers with
the child's number. `move FIRST COUNT` answers with the seconds for so many batches from batch FIRST on, four in flight, and
the microseconds of a post at the median. `about` answers with the version. The lists are those of bench/lib/transfer-pair.js.
What NIXL can prepare, it prepares, once and untimed.
"""

import ctypes
import importlib.metadata
import mmap
import os
import statistics
import sys
import time
from multiprocessing import Pipe, get_context

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

IN_FLIGHT = 4


def scattered(blocks, seed):
    order = np.arange(blocks, dtype=np.int32)
    state = seed
    for i in range(blocks - 1, 0, -1):
        state = (state * 1_103_515_245 + 12_345) & 0xFFFFFFFF
        other = (state >> 8) % (i + 1)
        order[i], order[other] = order[other], order[i]
    return order


def memory_of(size, byte):
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.memset(address, byte, size)
    return memory, address


def descriptors(address, block_bytes, blocks):
    rows = np.empty((blocks, 3), dtype=np.uint64)
    rows[:, 0] = address + np.arange(blocks, dtype=np.uint64) * np.uint64(block_bytes)
    rows[:, 1] = block_bytes
    rows[:, 2] = 0
    return rows


def serve(pipe, size):
    agent = nixl_agent("far", nixl_agent_config(backends=["UCX"]))
    memory, address = memory_of(size, 1)
    agent.register_memory([(address, size, 0, "")], "DRAM")
    pipe.send((agent.get_agent_metadata(), address))
    pipe.recv()
    # Its destructors crash when the interpreter ends.
    os._exit(0)


class Nixl:
    def __init__(self, block_bytes, blocks, batch_blocks, op):
        size = block_bytes * blocks
        self.pipe, theirs = Pipe()
        self.far = get_context("spawn").Process(target=serve, args=(theirs, size), daemon=True)
        self.far.start()
        metadata, far_address = self.pipe.recv()
        self.agent = nixl_agent("near", nixl_agent_config(backends=["UCX"]))
        self.memory, address = memory_of(size, 2)
        self.agent.register_memory([(address, size, 0, "")], "DRAM")
        far = self.agent.add_remote_agent(metadata)
        near_side = self.agent.prep_xfer_dlist("", descriptors(address, block_bytes, blocks), "DRAM")
        far_side = self.agent.prep_xfer_dlist(far, descriptors(far_address, block_bytes, blocks), "DRAM")
        sources, targets = scattered(blocks, 1), scattered(blocks, 2)
        near_order, far_order = (targets, sources) if op == "read" else (sources, targets)
        self.handles = []
        for at in range(0, blocks - batch_blocks + 1, batch_blocks):
            part = slice(at, at + batch_blocks)
            self.handles.append(
                self.agent.make_prepped_xfer(op.upper(), near_side, near_order[part], far_side, far_order[part])
            )
        for handle in self.handles:
            self.finish(handle, self.agent.transfer(handle))

    def finish(self, handle, state):
        while state == "PROC":
            state = self.agent.check_xfer_state(handle)
        if state != "DONE":
            raise RuntimeError(f"a transfer ended as {state}")

    def move(self, first, count):
        posts = []
        in_flight = []
        begin = time.perf_counter()
        for i in range(first, first + count):
            if len(in_flight) == IN_FLIGHT:
                self.finish(*in_flight.pop(0))
            handle = self.handles[i % len(self.handles)]
            start = time.perf_counter()
            state = self.agent.transfer(handle)
            posts.append(time.perf_counter() - start)
            in_flight.append((handle, state))
        for handle, state in in_flight:
            self.finish(handle, state)
        return time.perf_counter() - begin, statistics.median(posts) * 1e6

    def close(self):
        self.pipe.send("close")
        self.far.join(10)


def main():
    opened = None
    for line in sys.stdin:
        command, *words = line.split()
        if command == "about":
            print(importlib.metadata.version("nixl"), flush=True)
        elif command == "open":
            if opened is not None:
                opened.close()
            *sizes, op = words
            opened = Nixl(*map(int, sizes), op)
            print(opened.far.pid, flush=True)
        else:
            print(*opened.move(*map(int, words)), flush=True)
    if opened is not None:
        opened.close()
    os._exit(0)


if __name__ == "__main__":
    # NIXL logs to stdout, which is for answers here.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = answers
    main()
