"""How much each key block is worth to the queries that choose.

Scores come in float64; whoever ranks them rounds once. So equal scores are equal whatever the order of their sums, and ties
fall as the language says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias, assert_never

import torch
from torch import Tensor

from nsa_dsl.pattern import Branch, BranchScore, Choice, Compress, GivenIndices, GivenScores, IndexScore, NotSupported, PooledScore
from nsa_dsl.reference.call import Call, Extent
from nsa_dsl.reference.memory import slots
from nsa_dsl.reference.softmax import logits, probabilities, spread
from nsa_dsl.reference.visible import block_count, finished, positions, visible

Required: TypeAlias = Callable[[Iterable[Branch]], Mapping[str, tuple[Choice, Tensor]]]
"""Makes the choices that branches name, for branches that others score by."""


def block_scores(call: Call, choice: Choice, branch: Branch, required: Required) -> Tensor:
    """(batch, units, query units, blocks) scores, reduced over the heads that share. branch: the one that makes the choice.

    Raises ValueError when the caller should have passed scores, NotSupported for `by = index` and `by = indices`.
    """
    match choice.score:
        case BranchScore(source):
            return _reduce(choice, _mapped(call, choice, call.pattern.branch(source), required), call.extent)
        case PooledScore():
            return _pooled(call, choice, branch)
        case GivenScores():
            given, extent = call.given(choice, "scores").detach().to(torch.float64), call.extent
            expected = (extent.batch, extent.units(choice), len(positions(choice, extent)), block_count(choice, extent.n))
            if given.shape != expected:
                raise ValueError(f"scores of {choice.name!r} must be {expected}, not {tuple(given.shape)}")
            return given
        case IndexScore():
            raise NotSupported(f"choice {choice.name!r}: `by = index` needs the indexer's queries and keys, which no argument carries")
        case GivenIndices():
            raise NotSupported(f"choice {choice.name!r}: `by = indices` has no scores")
        case _:
            assert_never(choice.score)


def _reduce(choice: Choice, by_head: Tensor, extent: Extent) -> Tensor:
    units = extent.units(choice)
    grouped = by_head.reshape(extent.batch, units, extent.heads // units, *by_head.shape[2:])
    match choice.reduce:
        case "sum":
            return grouped.sum(2)
        case "mean":
            return grouped.mean(2)
        case "max":
            return grouped.amax(2)
        case _:
            assert_never(choice.reduce)


def _queries(call: Call, choice: Choice) -> Tensor:
    """(batch, heads, query units, d_qk): the choosing query's own, or the mean of a tile's."""
    if choice.queries == 1 or call.extent.n == 0:
        return call.q[:, :, positions(choice, call.extent)]
    return torch.stack([each.mean(2) for each in torch.split(call.q, choice.queries, 2)], 2)


def _mapped(call: Call, choice: Choice, source: Branch, required: Required) -> Tensor:
    """The source branch's probabilities at the choosing queries, mapped to blocks by overlap length / stride."""
    extent, at, queries = call.extent, positions(choice, call.extent), _queries(call, choice)
    keys, _ = call.memory(source)
    overlap = _overlap(source, choice, extent)
    sink = call.sink(source)
    sinks = None if sink is None else sink[:, None]
    seen = required((source,))
    mapped = []
    for run in extent.runs(keys.shape[2], len(at)):
        score = logits(source, extent, queries[:, :, run], at[run], keys, call.scale)
        probability, _ = probabilities(score, visible(source, extent, at[run], seen), sinks)
        mapped.append(probability @ overlap)
    return torch.cat(mapped, 2)


def _overlap(source: Branch, choice: Choice, extent: Extent) -> Tensor:
    """(slots, blocks) float64: tokens that a slot and a block have in common, over the stride (NSA, Eq. 9)."""
    memory = source.memory
    length, stride = (memory.block, memory.stride) if isinstance(memory, Compress) else (1, 1)
    count = slots(memory, extent.n) if isinstance(memory, Compress) else extent.n
    start = torch.arange(count, device=extent.device)[:, None] * stride
    edge = torch.arange(block_count(choice, extent.n), device=extent.device)[None, :] * choice.block
    common = torch.minimum(start + length, edge + choice.block) - torch.maximum(start, edge)
    return common.clamp(min=0).to(torch.float64) / stride


def _pooled(call: Call, choice: Choice, branch: Branch) -> Tensor:
    """Unscaled products with pooled keys; blocks that end after the choosing query score -inf."""
    assert isinstance(choice.score, PooledScore)
    extent, queries, tokens = call.extent, _queries(call, choice), call.tokens(branch)
    blocks, whole = block_count(choice, extent.n), extent.n // choice.block
    keys = spread(tokens[:, :, : whole * choice.block], extent.heads)
    keys = keys.reshape(*keys.shape[:2], whole, choice.block, keys.shape[-1])
    match choice.score.by:
        case "mean":
            product = queries @ keys.mean(3).mT
        case "max":
            product = queries @ keys.amax(3).mT
        case "minmax":
            # max(q * high, q * low) is q+ * high + q- * low, feature by feature.
            product = queries.clamp(min=0) @ keys.amax(3).mT + queries.clamp(max=0) @ keys.amin(3).mT
        case _:
            assert_never(choice.score.by)
    reduced = _reduce(choice, torch.nn.functional.pad(product, (0, blocks - whole), value=-math.inf), extent)
    return torch.where(finished(choice, extent), reduced, -math.inf)
