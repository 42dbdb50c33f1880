"""Compressed memories: the slots that summarise runs of keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, assert_never

import torch
from torch import Tensor

from nsa_dsl.pattern import Compress

Compressor: TypeAlias = torch.nn.Module | Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(k blocks, v blocks), each (batch, kv_heads, slots, block, d) -> (k slots, v slots), each (batch, kv_heads, slots, d)."""


def slots(memory: Compress, n: int) -> int:
    """How many slots summarise n tokens: incomplete blocks are never compressed."""
    return (n - memory.block) // memory.stride + 1 if n >= memory.block else 0


def gather(memory: Compress, tokens: Tensor) -> Tensor:
    """(batch, kv_heads, n, d) -> (batch, kv_heads, slots, block, d): slot t holds tokens [t * stride, t * stride + block)."""
    batch, kv_heads, n, width = tokens.shape
    if n < memory.block:
        return tokens[:, :, :0, None, :].expand(batch, kv_heads, 0, memory.block, width)
    return tokens.unfold(2, memory.block, memory.stride).transpose(-1, -2)


def compress(
    memory: Compress, k: Tensor, v: Tensor, *, weights: tuple[Tensor, Tensor] | None = None, compressor: Compressor | None = None
) -> tuple[Tensor, Tensor]:
    """The slots of a memory.

    k: (batch, kv_heads, n, d_qk), v: (batch, kv_heads, n, d_v). weights (by = weighted): for k and for v, each (kv_heads, block).
    compressor (by = mlp): see `Compressor`; a module's parameters are cast to k's dtype, and stay differentiable.
    Returns k (batch, kv_heads, slots, d_qk) and v (batch, kv_heads, slots, d_v). Raises ValueError when a parameter is missing.
    """
    k_blocks, v_blocks = gather(memory, k), gather(memory, v)
    match memory.by:
        case "mean":
            return k_blocks.mean(-2), v_blocks.mean(-2)
        case "max":
            return k_blocks.amax(-2), v_blocks.amax(-2)
        case "weighted":
            if weights is None:
                raise ValueError(f"memory {memory.name!r} is compressed by weights: pass weights={{{memory.name!r}: (for k, for v)}}")
            for_k, for_v = (each.to(k.dtype)[None, :, None, :, None] for each in weights)
            return (k_blocks * for_k).sum(-2), (v_blocks * for_v).sum(-2)
        case "mlp":
            if compressor is None:
                raise ValueError(f"memory {memory.name!r} is compressed by a module: pass compressors={{{memory.name!r}: module}}")
            return _apply(compressor, k_blocks, v_blocks)
        case _:
            assert_never(memory.by)


def _apply(compressor: Compressor, k_blocks: Tensor, v_blocks: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(compressor, torch.nn.Module):
        return compressor(k_blocks, v_blocks)
    state = {**dict(compressor.named_parameters()), **dict(compressor.named_buffers())}
    cast = {name: each.to(k_blocks.dtype) if each.is_floating_point() else each for name, each in state.items()}
    pair: tuple[Tensor, Tensor] = torch.func.functional_call(compressor, cast, (k_blocks, v_blocks))
    return pair
