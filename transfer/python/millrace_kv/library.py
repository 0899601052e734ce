"""libmillrace_kv.so by ctypes: its structs and functions as native/capi/millrace_kv.h declares them.

The library is looked for where MILLRACE_KV_LIBRARY says, else in build/Release of the package that this file is part of.
"""

import ctypes as c
import os
from pathlib import Path

from .errors import TransferError, of_status

ABI = 1


class AgentParams(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("abi", c.c_uint32),
        ("name", c.c_char_p),
        ("transports", c.c_char_p),
        ("listen_host", c.c_char_p),
        ("operations_max", c.c_uint32),
        ("spin_us", c.c_uint32),
    ]


class Plane(c.Structure):
    _fields_ = [("base", c.c_uint64), ("block_stride", c.c_uint64)]


class Layout(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("abi", c.c_uint32),
        ("kind", c.c_uint32),
        ("blocks", c.c_uint32),
        ("layers", c.c_uint32),
        ("block_tokens", c.c_uint32),
        ("heads", c.c_uint32),
        ("heads_total", c.c_uint32),
        ("head_dim", c.c_uint32),
        ("element_bytes", c.c_uint32),
        ("tp_rank", c.c_uint32),
        ("tp_size", c.c_uint32),
        ("block_order", c.c_uint32),
        ("inner_order", c.c_uint32),
        ("kv_split", c.c_uint32),
        ("plane_count", c.c_uint32),
        ("planes", c.POINTER(Plane)),
        ("block_bytes", c.c_uint64),
        ("stride", c.c_uint64),
        ("model", c.c_char_p),
    ]


class PoolParams(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("abi", c.c_uint32),
        ("layout", c.POINTER(Layout)),
        ("bytes", c.c_uint64),
        ("address", c.c_void_p),
        ("memory_kind", c.c_uint32),
        ("device", c.c_int32),
        ("name", c.c_char_p),
    ]


class TransferParams(c.Structure):
    _fields_ = [
        ("size", c.c_uint32),
        ("abi", c.c_uint32),
        ("peer", c.c_uint32),
        ("direction", c.c_uint32),
        ("local_pool", c.c_uint32),
        ("remote_pool", c.c_uint32),
        ("local_blocks", c.POINTER(c.c_uint32)),
        ("remote_blocks", c.POINTER(c.c_uint32)),
        ("remote_generations", c.POINTER(c.c_uint32)),
        ("block_count", c.c_uint32),
        ("first_layer", c.c_uint32),
        ("layers", c.c_uint32),
        ("first_head", c.c_uint32),
        ("heads", c.c_uint32),
        ("integrity", c.c_uint32),
        ("reader", c.c_uint32),
        ("priority", c.c_uint32),
        ("deadline_ms", c.c_uint32),
        ("notification_bytes", c.c_uint32),
        ("notification", c.c_char_p),
        ("lease", c.c_uint64),
        ("transport", c.c_char_p),
    ]


class Event(c.Structure):
    _fields_ = [
        ("kind", c.c_uint32),
        ("status", c.c_int32),
        ("id", c.c_uint64),
        ("bytes", c.c_uint64),
        ("posted_ns", c.c_uint64),
        ("begun_ns", c.c_uint64),
        ("done_ns", c.c_uint64),
        ("peer", c.c_uint32),
        ("notification_bytes", c.c_uint32),
        ("notification", c.c_void_p),
        ("transport", c.c_char_p),
    ]


def filled(struct_type, **fields):
    """A struct with its size and abi set."""
    return struct_type(size=c.sizeof(struct_type), abi=ABI, **fields)


_AGENT = c.c_void_p
_U32_LIST = c.POINTER(c.c_uint32)
_SIGNATURES = {
    "mkv_abi": (c.c_uint32, []),
    "mkv_last_error": (c.c_char_p, []),
    "mkv_agent_open": (c.c_int32, [c.POINTER(AgentParams), c.POINTER(_AGENT)]),
    "mkv_agent_close": (None, [_AGENT]),
    "mkv_pool_open": (c.c_int32, [_AGENT, c.POINTER(PoolParams), _U32_LIST]),
    "mkv_pool_address": (c.c_void_p, [_AGENT, c.c_uint32]),
    "mkv_pool_close": (c.c_int32, [_AGENT, c.c_uint32]),
    "mkv_metadata": (c.c_int32, [_AGENT, c.c_char_p, c.POINTER(c.c_size_t)]),
    "mkv_peer_add": (c.c_int32, [_AGENT, c.c_char_p, c.c_size_t, _U32_LIST]),
    "mkv_peer_remove": (c.c_int32, [_AGENT, c.c_uint32]),
    "mkv_submit": (c.c_int32, [_AGENT, c.POINTER(TransferParams), c.POINTER(c.c_uint64)]),
    "mkv_cancel": (c.c_int32, [_AGENT, c.c_uint64]),
    "mkv_notify": (c.c_int32, [_AGENT, c.c_uint32, c.c_char_p, c.c_size_t]),
    "mkv_poll": (c.c_int32, [_AGENT, c.POINTER(Event), c.c_uint32, c.c_uint32]),
    "mkv_lease": (
        c.c_int32,
        [_AGENT, c.c_uint32, _U32_LIST, c.c_uint32, c.c_uint32, c.c_uint32, c.POINTER(c.c_uint64)],
    ),
    "mkv_lease_release": (c.c_int32, [_AGENT, c.c_uint64]),
    "mkv_lease_hold": (c.c_int32, [_AGENT, c.c_uint32, c.c_uint64]),
    "mkv_lease_drop": (c.c_int32, [_AGENT, c.c_uint32, c.c_uint64]),
    "mkv_stats": (c.c_int32, [_AGENT, c.c_char_p, c.POINTER(c.c_size_t)]),
}

_loaded = None


def library():
    """The library, loaded at the first call. Raises TransferError UNSUPPORTED where it is absent or of another ABI."""
    global _loaded
    if _loaded is not None:
        return _loaded
    built = Path(__file__).parents[3] / "build" / "Release" / "libmillrace_kv.so"
    path = os.environ.get("MILLRACE_KV_LIBRARY", str(built))
    try:
        found = c.CDLL(path)
    except OSError as error:
        raise TransferError("UNSUPPORTED", f"{error}; npm run build:kv builds it") from error
    for name, (returned, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = returned, arguments
    if found.mkv_abi() != ABI:
        raise TransferError("UNSUPPORTED", f"{path} has ABI {found.mkv_abi()}, this package needs {ABI}")
    _loaded = found
    return found


def check(doing: str, result: int) -> int:
    """The result, or TransferError where it is below zero."""
    if result >= 0:
        return result
    raise of_status(result, f"{doing}: {library().mkv_last_error().decode(errors='replace')}")
