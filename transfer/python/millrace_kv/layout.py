"""Layouts of pools: what the bytes of a block mean (native/transfer/layout.h draws the orders)."""

import ctypes as c
from typing import Optional, Sequence, Tuple

from . import library as lib

_BLOCK_ORDERS = {"layer-major": 0, "block-major": 1}
_INNER_ORDERS = {"nhd": 0, "hnd": 1}
_KV_SPLITS = {"separate": 0, "adjacent": 1, "joined": 2}


def _shape(kind, blocks, layers, block_tokens, heads, head_dim, element_bytes, heads_total, tp_rank, tp_size,
           inner_order, kv_split, model, **more):
    return lib.filled(
        lib.Layout,
        kind=kind,
        blocks=blocks,
        layers=layers,
        block_tokens=block_tokens,
        heads=heads,
        heads_total=heads * tp_size if heads_total is None else heads_total,
        head_dim=head_dim,
        element_bytes=element_bytes,
        tp_rank=tp_rank,
        tp_size=tp_size,
        inner_order=_INNER_ORDERS[inner_order],
        kv_split=_KV_SPLITS[kv_split],
        model=model.encode(),
        **more,
    )


def paged_kv(*, blocks: int, layers: int, block_tokens: int, heads: int, head_dim: int, element_bytes: int,
             heads_total: Optional[int] = None, tp_rank: int = 0, tp_size: int = 1, block_order: str = "layer-major",
             inner_order: str = "nhd", kv_split: str = "separate", model: str = "") -> lib.Layout:
    """A paged KV cache in one piece of memory; of one rank."""
    return _shape(0, blocks, layers, block_tokens, heads, head_dim, element_bytes, heads_total, tp_rank, tp_size,
                  inner_order, kv_split, model, block_order=_BLOCK_ORDERS[block_order])


def tensor_list(*, planes: Sequence[Tuple[int, int]], blocks: int, layers: int, block_tokens: int, heads: int,
                head_dim: int, element_bytes: int, heads_total: Optional[int] = None, tp_rank: int = 0,
                tp_size: int = 1, inner_order: str = "nhd", kv_split: str = "separate", model: str = "") -> lib.Layout:
    """The same with planes of their own place: (bytes to block 0, bytes from block to block) for each."""
    array = (lib.Plane * len(planes))(*planes)
    layout = _shape(1, blocks, layers, block_tokens, heads, head_dim, element_bytes, heads_total, tp_rank, tp_size,
                    inner_order, kv_split, model, plane_count=len(planes),
                    planes=c.cast(array, c.POINTER(lib.Plane)))
    return layout


def opaque(*, blocks: int, block_bytes: int, stride: Optional[int] = None) -> lib.Layout:
    """Bytes without meaning: block b at b * stride."""
    return lib.filled(lib.Layout, kind=2, blocks=blocks, block_bytes=block_bytes,
                      stride=block_bytes if stride is None else stride)
