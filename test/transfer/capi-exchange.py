"""Two processes exchange blocks through millrace_kv: the parent starts a child, each has an agent and registered memory.
Usage: capi-exchange.py TRANSPORT. Exits 0 when all bytes arrived; prints what memory it used."""

import mmap
import subprocess
import sys

from millrace_kv import Agent, TransferError, opaque

BLOCK_BYTES, BLOCKS, TIMEOUT_S = 65536, 8, 20


def memory():
    """numpy's where there is numpy, else a mapping's; with a view of its bytes."""
    try:
        import numpy
    except ImportError:
        mapped = mmap.mmap(-1, BLOCK_BYTES * BLOCKS)
        return "mmap", mapped, memoryview(mapped)
    array = numpy.zeros(BLOCK_BYTES * BLOCKS, dtype=numpy.uint8)
    return "numpy", array, memoryview(array)


def block(view, number):
    return view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


def open_pool(agent):
    layout = opaque(blocks=BLOCKS, block_bytes=BLOCK_BYTES)
    kind, held, view = memory()
    return agent.register_pool(layout, held), view, kind


def child(transport):
    with Agent("child", transports=[transport]) as agent:
        pool, view, _ = open_pool(agent)
        for number in range(BLOCKS):
            block(view, number)[:] = bytes([number + 1]) * BLOCK_BYTES
        print(agent.metadata().hex(), pool.id, flush=True)
        agent.connect(bytes.fromhex(sys.stdin.readline()))
        told = agent.notification(TIMEOUT_S)
        assert told is not None and told.data == b"written", told
        assert bytes(block(view, 7)) == b"\x55" * BLOCK_BYTES, "the parent's block is here"
        print("seen", flush=True)
        sys.stdin.readline()


def parent(transport):
    other = subprocess.Popen([sys.executable, __file__, transport, "child"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    try:
        with Agent("parent", transports=[transport]) as agent:
            pool, view, kind = open_pool(agent)
            blob, remote = other.stdout.readline().split()
            peer = agent.connect(bytes.fromhex(blob))
            print(agent.metadata().hex(), file=other.stdin, flush=True)
            read = peer.read(pool, [0, 1, 2], int(remote), [4, 2, 0], integrity="full").wait(TIMEOUT_S)
            assert read.bytes == 3 * BLOCK_BYTES and read.transport == transport, (read.bytes, read.transport)
            assert [view[0], view[BLOCK_BYTES], view[2 * BLOCK_BYTES]] == [5, 3, 1], "blocks 4, 2 and 0 of the child"
            block(view, 3)[:] = b"\x55" * BLOCK_BYTES
            peer.write(pool, [3], int(remote), [7], notification=b"written").wait(TIMEOUT_S)
            assert other.stdout.readline() == "seen\n"
            refused(lambda: peer.read(pool, [0], int(remote), [BLOCKS]), "INVALID")
            refused(lambda: peer.read(pool, [0, 1], int(remote), [0]), "INVALID")
            refused(lambda: peer.read(pool, [0], 99, [0]), "NOT_FOUND")
            refused(lambda: agent.register_pool(opaque(blocks=1, block_bytes=1), b"read-only"), "INVALID")
            print(f"done {kind}")
        refused(agent.metadata, "CLOSED")
    finally:
        other.stdin.close()
        assert other.wait(TIMEOUT_S) == 0


def refused(call, code):
    try:
        call()
    except TransferError as error:
        assert error.code == code, error
    else:
        raise AssertionError(f"{code} was not raised")


(child if sys.argv[2:] == ["child"] else parent)(sys.argv[1])
