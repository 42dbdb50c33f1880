"""Rotary positions (RoFormer, arXiv 2104.09864, Eq. 34), and which position a token has in a packed batch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """x with feature pair (f, f + dim / 2) turned by positions * base ** (-2 f / dim): the split in halves that GPT-NeoX and Llama use.

    x: (batch, heads, tokens, dim), dim even; positions: integers (tokens,) or (batch, tokens). Computed in float32 at least, returned in
    x's dtype. Raises ValueError for an odd dim.
    """
    dim = x.shape[-1]
    if dim % 2:
        raise ValueError(f"x: rotary positions turn pairs of features, and {dim} is odd")
    # Positions times frequencies reach the sequence length: in bfloat16 neighbouring tokens would get the same angle.
    precise = torch.promote_types(x.dtype, torch.float32)
    frequency = base ** (torch.arange(0, dim, 2, device=x.device, dtype=precise) / -dim)
    angle = positions.to(precise)[..., None] * frequency
    if angle.dim() == 3:
        angle = angle[:, None]
    cos, sin = angle.cos(), angle.sin()
    first, second = x.to(precise).chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def document_positions(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """(tokens,) int64: how far each token is into its own document. cu_seqlens: (documents + 1,) integers from 0 to tokens, rising;
    documents may be empty."""
    place = torch.arange(tokens, device=cu_seqlens.device)
    borders = cu_seqlens.to(torch.int64)
    return place - borders[torch.searchsorted(borders[1:].contiguous(), place, right=True)]
