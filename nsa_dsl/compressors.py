"""Learned compressors: modules whose parameters belong to the user, called alike by the op and by the reference."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from nsa_dsl.pattern import Compress, Pattern


def split_blocks(tokens: Tensor, block: int, stride: int) -> Tensor:
    """The blocks of `block` tokens that begin every `stride` tokens, incomplete ones left out: a view.

    tokens: (batch, kv_heads, tokens, width) -> (batch, kv_heads, slots, block, width).
    """
    if tokens.shape[2] < block:
        return tokens[:, :, :0, None].expand(-1, -1, -1, block, -1)
    if tokens.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _Blocks.apply(tokens, block, stride))  # type: ignore[no-untyped-call]
    return _view_blocks(tokens, block, stride)


def _view_blocks(tokens: Tensor, block: int, stride: int) -> Tensor:
    return tokens.unfold(2, block, stride).transpose(3, 4)


class _Blocks(torch.autograd.Function):
    """`Tensor.unfold` with a gradient that is as fast as copying it: torch's own looks for every token's blocks one by one.

    The derivatives are torch operations, so that they can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, block: int, stride: int) -> Tensor:
        ctx.tokens, ctx.stride = tokens.shape[2], stride
        return _view_blocks(tokens, block, stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Blocks in parts of `stride` tokens: the same part of all blocks meets no token twice, and is added to all of them at once."""
        batch, kv_heads, slots, block, width = grad.shape
        stride = ctx.stride
        summed = grad.new_empty(batch, kv_heads, ctx.tokens, width)
        # The first parts are copied, not added, so that only the tokens without one need zeros: some of the last, or of every stride.
        (summed if stride > block else summed[:, :, -block:]).zero_()
        for first in range(0, block, stride):
            part = grad[:, :, :, first : first + stride]
            strides = (*summed.stride()[:2], stride * width, width, 1)
            into = summed.as_strided((batch, kv_heads, slots, part.shape[3], width), strides, first * width)
            if first > 0:
                into.add_(part)
            elif (words := _as_words(into, part)) is not None:
                words[0].copy_(words[1])
            else:
                into.copy_(part)
        return summed, None, None


class _Expand(torch.autograd.Function):
    """A linear map of blocks, each as one vector. A product wants the overlapping blocks copied (block / stride times the tokens), and
    so does the gradient of its weight: backward copies them again, so that what is kept is the tokens that there are anyway.

    The derivatives are torch operations, so that they can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(blocks, weight)
        return _expand(blocks, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        blocks, weight = ctx.saved_tensors
        for_blocks, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            (grad @ weight).view(blocks.shape).to(blocks.dtype) if for_blocks else None,
            rows.mT @ _copy_rows(blocks, weight.dtype) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _expand(blocks: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """blocks: (..., block, width), weight: (hidden, block * width), bias: (hidden,) -> (..., hidden) in weight's dtype."""
    return nn.functional.linear(_copy_rows(blocks, weight.dtype), weight, bias).view(*blocks.shape[:-2], weight.shape[0])


def _copy_rows(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., block, width) -> (blocks, block * width)."""
    if blocks.dtype == dtype and (words := _as_words(blocks)) is not None:
        return words[0].flatten(-2).flatten(0, -2).view(dtype)
    return blocks.to(dtype).flatten(-2).flatten(0, -2)


def _as_words(*tensors: Tensor) -> tuple[Tensor, ...] | None:
    """The same memory as integers of 8 bytes, which torch copies in fewer steps than the two bytes of a number one by one where memory
    has gaps or overlaps. None if rows are no whole words, if a copy has to have a gradient, or while torch.compile looks on, which
    makes copies of its own."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(each.requires_grad for each in tensors)):
        return None
    words = []
    for each in tensors:
        size = 8 // each.element_size()
        if each.stride(-1) != 1 or any(n % size for n in (each.shape[-1], each.storage_offset(), *each.stride()[:-1])):
            return None
        words.append(each.view(torch.int64))
    return tuple(words)


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
        dtype = _product_dtype(blocks, self.expand.weight)
        weight, bias = self.expand.weight.to(dtype), self.expand.bias.to(dtype)
        # W (x + p) + b = W x + (W p + b): one vector for all blocks, where a sum for each would be a copy of them.
        bias = nn.functional.linear(self.position.flatten().to(dtype), weight, bias)
        # Without a gradient of its weight, a product keeps no blocks.
        expand = _Expand.apply if weight.requires_grad and torch.is_grad_enabled() else _expand
        hidden = cast(Tensor, expand(blocks, weight, bias))
        encoded: Tensor = self.contract(nn.functional.gelu(hidden))
        return encoded


def _product_dtype(blocks: Tensor, parameter: Tensor) -> torch.dtype:
    """What a product of both is computed in: the wider type, or autocast's, which float64 is spared."""
    wider = torch.promote_types(blocks.dtype, parameter.dtype)
    device = blocks.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and wider != torch.float64 else wider


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
