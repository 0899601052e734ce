"""Moves KV blocks between pools of processes and hosts, from Python: what an engine's connector loads.

The engine is libmillrace_kv.so (native/capi/millrace_kv.h), loaded by ctypes; this package needs nothing else. numpy and
torch are used where the caller's memory comes from them, and never imported here.
"""

from .agent import Agent, Lease, Notification, Peer, Pool, Transfer
from .errors import TransferError
from .layout import opaque, paged_kv, tensor_list

__all__ = [
    "Agent",
    "Lease",
    "Notification",
    "Peer",
    "Pool",
    "Transfer",
    "TransferError",
    "opaque",
    "paged_kv",
    "tensor_list",
]
