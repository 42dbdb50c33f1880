"""Inputs of a benchmark: random tensors laid out as models have them, whose queries agree on their choices as much as is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nsa_dsl.arguments import Shape, choice_shape
from nsa_dsl.bench.rows import Sharing
from nsa_dsl.compressors import MLPCompressor
from nsa_dsl.pattern import Choice, GivenIndices, GivenScores, Pattern
from nsa_dsl.verify.inputs import Inputs, all_choices
from nsa_dsl.work import ALIKE

RUN = 64
"""Neighbouring queries that have something in common: a block of NSA."""

COMMON: dict[Sharing, float] = {"random": 0.0, "clustered": 0.92, "identical": 1.0}
"""How much of a query's variance its run shares. 0.92 was found by simulation: with 16 heads a group, D = 128 and means of 32 keys, four
neighbours then take 24 (8k tokens) to 28 (64k) different blocks of 16 each, of which 16 would be total agreement and about 54 none."""

COMMON_BLOCKS = ALIKE
"""The same for lists of blocks that are given: the part of its free places that a run fills alike."""

_TOKENS_AT_ONCE = 1 << 14
_SCORES_AT_ONCE = 1 << 25


def token_major(shape: tuple[int, int, int, int], dtype: torch.dtype, generator: torch.Generator, *, gap: int = 0) -> Tensor:
    """Normal numbers (batch, heads, tokens, dim) on the generator's device, in memory (batch, tokens, heads, dim).

    gap: elements of NaN that follow each row of `dim`.
    """
    batch, heads, tokens, dim = shape
    whole = torch.full((batch, tokens, heads, dim + gap), float("nan"), dtype=dtype, device=generator.device)
    fill_normal(whole[..., :dim], generator)
    return whole[..., :dim].transpose(1, 2)


def fill_normal(tensor: Tensor, generator: torch.Generator, common: float = 0.0) -> None:
    """Fill (batch, tokens, heads, dim) with normal numbers, a part at a time. common: the part of the variance that RUN tokens share."""
    batch, tokens, heads, dim = tensor.shape
    for start in range(0, tokens, _TOKENS_AT_ONCE):
        part = tensor[:, start : start + _TOKENS_AT_ONCE]
        drawn = torch.randn(part.shape, generator=generator, device=tensor.device, dtype=tensor.dtype)
        if common:
            runs = -(-part.shape[1] // RUN)
            shared = torch.randn(batch, runs, heads, dim, generator=generator, device=tensor.device, dtype=tensor.dtype)
            drawn = drawn.mul_((1 - common) ** 0.5).add_(shared.repeat_interleave(RUN, 1)[:, : part.shape[1]], alpha=common**0.5)
        part.copy_(drawn)


def make_inputs(
    pattern: Pattern, dtype: torch.dtype, shape: Shape, *, sharing: Sharing = "random", seed: int = 0, device: str = "cuda", gap: int = 0
) -> Inputs:
    """Random inputs of a call; q, k and v as `token_major` makes them, q's runs of RUN tokens alike as `sharing` says.

    Choices that a pattern takes from its caller (`by = indices`, `by = scores`) are drawn to the same effect.
    """
    generator = torch.Generator(device=device).manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype)

    def per_branch(dim: int) -> Any:
        size = (shape.batch, shape.kv_heads, shape.tokens, dim)
        if not pattern.kv_per_branch:
            return token_major(size, dtype, generator, gap=gap)
        return {each.name: token_major(size, dtype, generator, gap=gap) for each in pattern.branches}

    options = _options(pattern, shape, drawn, seed, device, dtype)
    options |= _given_choices(pattern, shape, sharing, generator)
    q = token_major((shape.batch, shape.heads, shape.tokens, shape.dim_qk), dtype, generator, gap=gap)
    if COMMON[sharing]:
        fill_normal(q.transpose(1, 2), generator, COMMON[sharing])
    return Inputs(q, per_branch(shape.dim_qk), per_branch(shape.dim_v), options)


def _options(pattern: Pattern, shape: Shape, drawn: Callable[..., Tensor], seed: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Gates, compressors, weights and sinks, as far as the pattern takes them."""
    options: dict[str, Any] = {}
    if pattern.output.kind in ("gate", "mix"):
        options["gates"] = drawn(shape.batch, shape.heads, shape.tokens, len(pattern.output.branches))
    learned = [each for each in pattern.memories if each.by == "mlp"]
    if learned:
        torch.manual_seed(seed)
        options["compressors"] = {
            each.name: MLPCompressor(each.block, shape.dim_qk, shape.dim_v).to(device, dtype).requires_grad_(False) for each in learned
        }
    weighted = [each for each in pattern.memories if each.by == "weighted"]
    if weighted:
        options["weights"] = {each.name: (drawn(shape.kv_heads, each.block), drawn(shape.kv_heads, each.block)) for each in weighted}
    sinks = {each.name: drawn(shape.heads) for each in pattern.branches if each.sink}
    if sinks:
        options["sinks"] = sinks
    return options


def _given_choices(pattern: Pattern, shape: Shape, sharing: Sharing, generator: torch.Generator) -> dict[str, Any]:
    """What the pattern takes from its caller: lists of blocks, and scores that lists are made of."""
    table = all_choices(pattern)
    given: dict[str, Any] = {}
    listed = {name: draw_blocks(each, shape, sharing, generator) for name, each in table.items() if isinstance(each.score, GivenIndices)}
    if listed:
        given["indices"] = listed
    scored = {name: each for name, each in table.items() if isinstance(each.score, GivenScores)}
    if scored:
        common = COMMON[sharing]
        given["scores"] = {}
        for name, each in scored.items():
            batch, units, queries, blocks = choice_shape(each, shape, -(-shape.tokens // each.block))
            scores = torch.empty(batch, queries, units, blocks, device=generator.device)
            fill_normal(scores, generator, common)
            given["scores"][name] = scores.transpose(1, 2).contiguous()
    return given


def draw_blocks(choice: Choice, shape: Shape, sharing: Sharing, generator: torch.Generator) -> Tensor:
    """Lists of key blocks, int32 (batch, units, query units, n), ascending, -1 where there are fewer: the first block, the query's own and
    the one before, and others drawn, of which a run of RUN queries fills a part alike."""
    size = choice_shape(choice, shape, choice.count or 0)
    batch, units, queries, count = size
    device, blocks = generator.device, -(-shape.tokens // choice.block)
    made = torch.full(size, -1, dtype=torch.int32, device=device)
    step = max(choice.every, choice.queries)
    most = max(RUN, _SCORES_AT_ONCE // max(1, blocks) // RUN * RUN)
    shared = round(COMMON_BLOCKS[sharing] * max(0, count - 3))
    for unit in range(batch * units):
        for start in range(0, queries, most):
            own = torch.arange(start, min(queries, start + most), device=device) * step // choice.block
            lists = _draw_lists(own, blocks, min(count, blocks), shared, generator)
            made[unit // units, unit % units, start : start + most, : lists.shape[1]] = lists
    return made


def _draw_lists(own: Tensor, blocks: int, count: int, shared: int, generator: torch.Generator) -> Tensor:
    """(queries, count) lists of the blocks 0 .. own. shared: how many of the free places a run fills alike."""
    block = torch.arange(blocks, device=own.device)
    later = block > own[:, None]
    scores = torch.rand(len(own), blocks, generator=generator, device=own.device)
    if shared:
        alike = torch.rand(-(-len(own) // RUN), blocks, generator=generator, device=own.device).repeat_interleave(RUN, 0)[: len(own)]
        least = alike.masked_fill(later, -1.0).topk(min(shared, blocks), -1).values[:, -1:]
        scores = torch.where(alike >= least, 2 + alike, scores)
    scores = torch.where((block == 0) | (block == own[:, None]) | (block == own[:, None] - 1), 9.0, scores)
    best, place = scores.masked_fill(later, -1.0).topk(count, -1)
    ordered = torch.where(best < 0, blocks, place).sort(-1).values
    return torch.where(ordered == blocks, -1, ordered).to(torch.int32)


def mean_union(lists: Tensor, neighbours: int = 4) -> float:
    """How many different blocks so many neighbouring queries take together, on average. lists: (batch, units, query units, n), negative =
    padding; queries at the end that make no whole group are left out unless there is no other."""
    if lists.numel() == 0:
        return 0.0
    group = min(neighbours, lists.shape[2])
    batch, units, queries, count = lists.shape
    whole = lists[:, :, : queries // group * group].reshape(batch, units, queries // group, group * count)
    total = 0
    for part in torch.split(whole, max(1, _SCORES_AT_ONCE // (batch * units * group * count)), 2):
        ordered = part.sort(-1).values
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        fresh[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
        total += int((fresh & (ordered >= 0)).sum())
    return total / (batch * units * (queries // group))
