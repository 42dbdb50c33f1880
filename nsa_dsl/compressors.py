"""Learned compressors: modules whose parameters belong to the user, called alike by the op and by the reference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nsa_dsl.pattern import Compress, Pattern


class BlockMLP(nn.Module):
    """NSA's phi (Eq. 7) for one side: a block of vectors, each with its position's encoding added, to one vector.

    The weights are shared by all KV heads, so one module fits any number of them. Parameters: position (block, width),
    expand (hidden, block * width), contract (width, hidden).
    """

    def __init__(self, block: int, width: int, hidden: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(block, width) * 0.02)
        self.expand = nn.Linear(block * width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, blocks: Tensor) -> Tensor:
        """blocks: (batch, kv_heads, slots, block, width) -> (batch, kv_heads, slots, width)."""
        encoded: Tensor = self.contract(nn.functional.gelu(self.expand((blocks + self.position).flatten(-2))))
        return encoded


class MLPCompressor(nn.Module):
    """`by = mlp`: the paper's learned compressor, apart for keys and values.

    block: tokens a slot; d_qk, d_v: widths of keys and values (d_v defaults to d_qk); hidden: of both layers, default 4 * width.
    """

    def __init__(self, block: int, d_qk: int, d_v: int | None = None, hidden: int | None = None) -> None:
        super().__init__()
        d_v = d_qk if d_v is None else d_v
        self.k = BlockMLP(block, d_qk, 4 * d_qk if hidden is None else hidden)
        self.v = BlockMLP(block, d_v, 4 * d_v if hidden is None else hidden)

    def forward(self, k_blocks: Tensor, v_blocks: Tensor) -> tuple[Tensor, Tensor]:
        """k_blocks: (batch, kv_heads, slots, block, d_qk), v_blocks: (..., d_v); returns the same without `block`."""
        return self.k(k_blocks), self.v(v_blocks)


class PositionWeights(nn.Module):
    """`by = weighted`: one weight a KV head and position, apart for keys and values; starts as the mean.

    Parameters: k and v, each (kv_heads, block).
    """

    def __init__(self, block: int, kv_heads: int) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.full((kv_heads, block), 1 / block))
        self.v = nn.Parameter(torch.full((kv_heads, block), 1 / block))

    def forward(self) -> tuple[Tensor, Tensor]:
        """The pair that `weights={memory: (for k, for v)}` takes."""
        return self.k, self.v


def make_modules(pattern: Pattern, *, kv_heads: int, d_qk: int, d_v: int | None = None) -> dict[str, nn.Module]:
    """A fresh module for every memory of the pattern that has parameters: memory's name -> MLPCompressor or PositionWeights."""

    def make(memory: Compress) -> nn.Module:
        return MLPCompressor(memory.block, d_qk, d_v) if memory.by == "mlp" else PositionWeights(memory.block, kv_heads)

    return {memory.name: make(memory) for memory in pattern.memories if memory.by in ("mlp", "weighted")}
