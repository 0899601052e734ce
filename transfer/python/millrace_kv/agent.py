"""Agents, pools, peers and transfers.

Bytes are moved by the agent's own native thread. Whoever waits (`Transfer.wait`, `Agent.notification`) takes the agent's
events for all who wait, one thread at a time; ctypes gives the interpreter lock up meanwhile.
"""

import ctypes as c
import json
import threading
import time
from collections import deque
from typing import NamedTuple, Optional, Sequence

from . import library as lib
from .errors import TransferError, of_status

_EVENTS = 64
_COMPLETION, _NOTIFICATION, _PEER_UP, _PEER_LOST, _LEASE_EXPIRED = range(5)
_INTEGRITIES = {"off": 0, "sample": 1, "full": 2}
_READERS = {"unknown": 0, "soon": 1, "later": 2}
# So long a thread waits in the library at most before it looks whether another one has taken its event.
_TURN_MS = 50


class Notification(NamedTuple):
    """Bytes that a peer sent, or that came with its transfer."""

    peer: int
    data: bytes


def _u32_list(field: str, numbers: Sequence[int]):
    for number in numbers:
        if not 0 <= number < 1 << 32:
            raise TransferError("INVALID", f"{field} must be below 2**32 and not negative; got {number}")
    return (c.c_uint32 * len(numbers))(*numbers)


def _device_array(array: dict):
    """Address and bytes of a C-contiguous, writable array on a GPU."""
    address, is_read_only = array["data"]
    item = int(array["typestr"][2:])
    size, expected = item, []
    for length in reversed(array["shape"]):
        expected.insert(0, size)
        size *= length
    if is_read_only or array.get("strides") not in (None, tuple(expected)):
        raise TransferError("INVALID", "memory must be writable and contiguous")
    return address, size


class Pool:
    """Memory whose blocks can be moved; made by Agent.create_pool or Agent.register_pool."""

    def __init__(self, agent: "Agent", number: int, size: int, memory, device: Optional[int] = None):
        self.id = number
        self.bytes = size
        self.device = device  # of a GPU; None: host memory
        self._agent = agent
        self._memory = memory  # held until the pool is closed

    @property
    def address(self) -> int:
        """Of the pool's first byte; on the GPU, where it is there."""
        return self._agent._library.mkv_pool_address(self._agent._open(), self.id)

    def view(self) -> memoryview:
        """The pool's bytes. Not to be used after the pool or the agent is closed. UNSUPPORTED for a pool on a GPU:
        torch.as_tensor(pool) has a view of that one."""
        if self.device is not None:
            raise TransferError("UNSUPPORTED", f"pool {self.id} is in the memory of GPU {self.device}")
        return memoryview((c.c_uint8 * self.bytes).from_address(self.address)).cast("B")

    @property
    def __cuda_array_interface__(self) -> dict:
        """Its bytes for torch, cupy and others, without a copy. Not to be used after the pool or the agent is closed."""
        if self.device is None:
            raise AttributeError("__cuda_array_interface__")
        return {"shape": (self.bytes,), "typestr": "|u1", "data": (self.address, False), "version": 3, "strides": None}

    def lease(self, blocks: Sequence[int], ttl_ms: int, peer: Optional["Peer"] = None) -> "Lease":
        """Leases blocks to a peer, or to whoever renews it."""
        agent, lease = self._agent, c.c_uint64()
        array = _u32_list("blocks", blocks)
        number = 0 if peer is None else peer.id
        lib.check("lease", agent._library.mkv_lease(agent._open(), self.id, array, len(array), ttl_ms, number,
                                                    c.byref(lease)))
        return Lease(agent, lease.value)

    def close(self) -> None:
        """Gives the memory back; BUSY while a transfer or a lease is in it."""
        lib.check("pool", self._agent._library.mkv_pool_close(self._agent._open(), self.id))
        self._memory = None


class Lease(NamedTuple):
    """Blocks of a pool here that a peer may use."""

    agent: "Agent"
    id: int

    def release(self) -> None:
        lib.check("lease", self.agent._library.mkv_lease_release(self.agent._open(), self.id))


class Transfer:
    """A transfer that has begun. Until it has completed its blocks, here and at the peer, must be left alone."""

    def __init__(self, agent: "Agent", number: int):
        self.id = number
        self.status: Optional[int] = None
        self.bytes = 0
        self.transport = ""
        self.posted_ns = self.done_ns = 0
        self._agent = agent

    @property
    def done(self) -> bool:
        return self.status is not None

    def cancel(self) -> None:
        """Its completion comes sooner; wait for it."""
        lib.check("cancel", self._agent._library.mkv_cancel(self._agent._open(), self.id))

    def wait(self, timeout_s: float) -> "Transfer":
        """Returns when it has succeeded; raises TransferError when it failed, TimeoutError when it goes on."""
        if not self._agent._wait(lambda: self.done, timeout_s):
            raise TimeoutError(f"transfer {self.id} goes on after {timeout_s} s")
        if self.status < 0:
            raise of_status(self.status, f"transfer {self.id}")
        return self


class Peer:
    """An agent that this one is connected to."""

    def __init__(self, agent: "Agent", number: int):
        self.id = number
        self._agent = agent

    def read(self, local: Pool, local_blocks: Sequence[int], remote_pool: int, remote_blocks: Sequence[int],
             **options) -> Transfer:
        """From the peer to here. Options: generations, layers and heads as (first, count), notification, priority,
        deadline_ms, integrity ('off', 'sample', 'full'), reader ('unknown', 'soon', 'later'), lease, transport."""
        return self._post(0, local, local_blocks, remote_pool, remote_blocks, **options)

    def write(self, local: Pool, local_blocks: Sequence[int], remote_pool: int, remote_blocks: Sequence[int],
              **options) -> Transfer:
        """From here to the peer; options as for read."""
        return self._post(1, local, local_blocks, remote_pool, remote_blocks, **options)

    def _post(self, direction, local, local_blocks, remote_pool, remote_blocks, *, generations=None, layers=(0, 0),
              heads=(0, 0), notification=b"", priority=0, deadline_ms=0, integrity="off", reader="unknown", lease=0,
              transport=""):
        agent = self._agent
        here, there = _u32_list("local_blocks", local_blocks), _u32_list("remote_blocks", remote_blocks)
        if len(here) != len(there):
            raise TransferError("INVALID", f"remote_blocks must be {len(here)} like local_blocks; got {len(there)}")
        if generations is not None and len(generations) != len(here):
            raise TransferError("INVALID", f"generations must be {len(here)} like local_blocks; got {len(generations)}")
        params = lib.filled(
            lib.TransferParams, peer=self.id, direction=direction, local_pool=local.id, remote_pool=remote_pool,
            local_blocks=here, remote_blocks=there,
            remote_generations=None if generations is None else _u32_list("generations", generations),
            block_count=len(here), first_layer=layers[0], layers=layers[1], first_head=heads[0], heads=heads[1],
            integrity=_INTEGRITIES[integrity], reader=_READERS[reader], priority=priority, deadline_ms=deadline_ms,
            notification_bytes=len(notification), notification=notification, lease=lease,
            transport=transport.encode())
        return agent._submit(params)

    def notify(self, data: bytes) -> None:
        """Sends bytes; they come out of the peer's Agent.notification."""
        lib.check("notify", self._agent._library.mkv_notify(self._agent._open(), self.id, data, len(data)))

    def hold_lease(self, lease: int) -> None:
        """Renews a lease of the peer until drop_lease."""
        lib.check("lease", self._agent._library.mkv_lease_hold(self._agent._open(), self.id, lease))

    def drop_lease(self, lease: int) -> None:
        """Tells the peer that its lease is needed no more."""
        lib.check("lease", self._agent._library.mkv_lease_drop(self._agent._open(), self.id, lease))

    def disconnect(self) -> None:
        """Its transfers end as CANCELLED."""
        lib.check("peer", self._agent._library.mkv_peer_remove(self._agent._open(), self.id))


class Agent:
    """Pools, peers and one native thread that moves bytes. Use it with `with`, or close it."""

    def __init__(self, name: str = "", *, transports: Sequence[str] = (), listen_host: str = "127.0.0.1",
                 operations_max: int = 4096, spin_us: int = 20):
        self._library = lib.library()
        self._handle: Optional[int] = None
        self._transfers = {}
        self._notifications = deque()
        self.lost_peers = set()
        self.expired_leases = set()
        self._lock = threading.Lock()
        self._polling = threading.Lock()
        self._events = (lib.Event * _EVENTS)()
        handle = c.c_void_p()
        params = lib.filled(lib.AgentParams, name=name.encode(), transports=",".join(transports).encode(),
                            listen_host=listen_host.encode(), operations_max=operations_max, spin_us=spin_us)
        lib.check("agent", self._library.mkv_agent_open(c.byref(params), c.byref(handle)))
        self._handle = handle.value

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _open(self) -> int:
        if self._handle is None:
            raise TransferError("CLOSED", "the agent is closed")
        return self._handle

    def create_pool(self, layout: lib.Layout, size: int, name: str = "millrace-kv", device: Optional[int] = None) -> Pool:
        """Zeroed memory of `size` bytes that other processes can map; on the GPU of that number where one is given."""
        if device is None:
            return self._pool(layout, size, None, 0, 0, name, None)
        return self._pool(layout, size, None, 1, device, name, None)

    def register_pool(self, layout: lib.Layout, memory, device: Optional[int] = None) -> Pool:
        """Memory of the caller, who leaves it where it is: a numpy array, a torch tensor (also on a GPU), anything with
        __cuda_array_interface__ (`device` is then its GPU), or with a writable buffer (bytearray, mmap, array). The pool
        holds it until it is closed.

        What a GPU block holds must be there before a peer or a write reads it: synchronize the stream that made it. Other
        processes reach memory that cudaMalloc made, as torch's does unless its segments are expandable."""
        if hasattr(memory, "data_ptr"):
            if not memory.is_contiguous():
                raise TransferError("INVALID", "memory must be a contiguous tensor")
            kind = memory.device.type
            if kind not in ("cpu", "cuda"):
                raise TransferError("INVALID", f"memory must be of the device type cpu or cuda; got {kind}")
            size = memory.numel() * memory.element_size()
            index = (memory.device.index or 0) if kind == "cuda" else 0
            return self._pool(layout, size, memory.data_ptr(), int(kind == "cuda"), index, "", memory)
        if hasattr(memory, "__cuda_array_interface__"):
            address, size = _device_array(memory.__cuda_array_interface__)
            if device is None:
                raise TransferError("INVALID", "device must be given for memory with __cuda_array_interface__")
            return self._pool(layout, size, address, 1, device, "", memory)
        view = memoryview(memory)
        if view.readonly or not view.c_contiguous:
            raise TransferError("INVALID", "memory must be writable and contiguous")
        # Holds the buffer, so that a bytearray cannot be resized under the engine.
        held = (c.c_uint8 * view.nbytes).from_buffer(view.cast("B"))
        return self._pool(layout, view.nbytes, c.addressof(held), 0, 0, "", held)

    def _pool(self, layout, size, address, kind, device, name, memory):
        number = c.c_uint32()
        params = lib.filled(lib.PoolParams, layout=c.pointer(layout), bytes=size, address=address, memory_kind=kind,
                            device=device, name=name.encode())
        lib.check("pool", self._library.mkv_pool_open(self._open(), c.byref(params), c.byref(number)))
        return Pool(self, number.value, size, memory, device if kind == 1 else None)

    def metadata(self) -> bytes:
        """What a peer gives to connect; any channel carries it."""
        return self._text(self._library.mkv_metadata)

    def stats(self) -> dict:
        """Counters and states, as the engine keeps them."""
        return json.loads(self._text(self._library.mkv_stats))

    def _text(self, function) -> bytes:
        size = c.c_size_t(4096)
        while True:
            out = c.create_string_buffer(size.value)
            status = function(self._open(), out, c.byref(size))
            if status >= 0:
                return out.raw[: size.value]
            if status != -6:  # FULL: `size` says now how much room it needs
                lib.check("agent", status)

    def connect(self, metadata: bytes) -> Peer:
        """Connects to the agent that made the metadata."""
        number = c.c_uint32()
        lib.check("connect", self._library.mkv_peer_add(self._open(), metadata, len(metadata), c.byref(number)))
        return Peer(self, number.value)

    def _submit(self, params: lib.TransferParams) -> Transfer:
        number = c.c_uint64()
        # Under the lock, so that nobody takes the completion before the transfer is known.
        with self._lock:
            lib.check("transfer", self._library.mkv_submit(self._open(), c.byref(params), c.byref(number)))
            transfer = Transfer(self, number.value)
            self._transfers[transfer.id] = transfer
        return transfer

    def notification(self, timeout_s: float) -> Optional[Notification]:
        """The next notification of any peer, or None when there is none in time."""
        self._wait(lambda: len(self._notifications) > 0, timeout_s)
        with self._lock:
            return self._notifications.popleft() if self._notifications else None

    def _wait(self, is_true, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while not is_true():
            left_ms = (until - time.monotonic()) * 1000
            if left_ms <= 0:
                return False
            turn_ms = max(1, min(_TURN_MS, int(left_ms)))
            if self._polling.acquire(timeout=turn_ms / 1000):
                try:
                    if not is_true():
                        self._take(turn_ms)
                finally:
                    self._polling.release()
        return True

    def _take(self, timeout_ms: int) -> None:
        count = lib.check("poll", self._library.mkv_poll(self._open(), self._events, _EVENTS, timeout_ms))
        with self._lock:
            for event in self._events[:count]:
                self._tell(event)

    def _tell(self, event: lib.Event) -> None:
        if event.kind == _COMPLETION:
            transfer = self._transfers.pop(event.id)
            transfer.bytes, transfer.posted_ns, transfer.done_ns = event.bytes, event.posted_ns, event.done_ns
            transfer.transport = (event.transport or b"").decode()
            transfer.status = event.status
        elif event.kind == _NOTIFICATION:
            data = c.string_at(event.notification, event.notification_bytes) if event.notification else b""
            self._notifications.append(Notification(event.peer, data))
        elif event.kind == _PEER_LOST:
            self.lost_peers.add(event.peer)
        elif event.kind == _PEER_UP:
            self.lost_peers.discard(event.peer)
        elif event.kind == _LEASE_EXPIRED:
            self.expired_leases.add(event.id)

    def close(self) -> None:
        """Ends every transfer, waits until its bytes are quiet and gives the pools back. No other call may be running."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._library.mkv_agent_close(handle)
            for transfer in self._transfers.values():
                transfer.status = -14
            self._transfers.clear()
