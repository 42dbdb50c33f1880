"""Floating-point operations of a call, from the pairs that its branches see. Formulas only: no kernels.

The convention is that of dense attention in torch: a multiplication and an addition are two operations; only matrix products count;
forward makes 2 (scores; probabilities times values), backward 5 (scores again; d_out times values; and the gradients of queries,
keys and values). With d_qk and d_v that is 2 (d_qk + d_v) a visible pair forward and 2 (3 d_qk + 2 d_v) backward. A product whose
result nobody wants is left out. Scores that only rank blocks, compressors and gates do not count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsa_dsl.arguments import Shape
from nsa_dsl.choice_bounds import bounded, kept_blocks, tokens_of
from nsa_dsl.count import count_keys
from nsa_dsl.integer_set import TooComplex
from nsa_dsl.lift import key_positions, lift_to_slots
from nsa_dsl.pattern import Branch, Choice, Compress
from nsa_dsl.relation import EMPTY, Chosen, Condition, SameDocument, disjunction, evaluate, rewrite, symbols, walk
from nsa_dsl.signature import Signature

_PAIRS_AT_ONCE = 1 << 22


def forward_flops(signature: Signature, shape: Shape, chosen: Mapping[str, Tensor], cu_seqlens: Tensor | None) -> int:
    """Operations of one call. chosen: the blocks of its choices; cu_seqlens: as the call was given it."""
    pairs = sum(visible_pairs(each, shape, chosen, cu_seqlens) for each in signature.computed)
    return 2 * (shape.dim_qk + shape.dim_v) * pairs


def backward_flops(
    signature: Signature, shape: Shape, chosen: Mapping[str, Tensor], cu_seqlens: Tensor | None, wanted: Collection[str]
) -> int:
    """Operations of the gradients of the inputs named `wanted`; other arguments as of `forward_flops`."""
    total = 0
    for branch in signature.computed:
        queries = "q" in wanted
        keys, values = (any(name in wanted for name in _sources(branch, part)) for part in ("keys", "values"))
        if queries or keys or values:
            width = shape.dim_qk * (1 + queries + keys) + shape.dim_v * ((queries or keys) + values)
            total += 2 * width * visible_pairs(branch, shape, chosen, cu_seqlens)
    return total


def _sources(branch: Branch, part: str) -> tuple[str, ...]:
    """The inputs that a branch's keys or values are made from, with and without `kv per branch`."""
    role, memory = "k" if part == "keys" else "v", branch.memory
    if isinstance(memory, Compress) and memory.by == "mlp":
        return f"slots.{memory.name}.{part}", f"slots.{memory.name}.{branch.name}.{part}"
    weights = (f"weights.{memory.name}.{part}",) if isinstance(memory, Compress) else ()
    return role, f"{role}.{branch.name}", *weights


def visible_pairs(branch: Branch, shape: Shape, chosen: Mapping[str, Tensor], cu_seqlens: Tensor | None) -> int:
    """The pairs of a query and a key or slot that the branch sees, over batch and query heads.

    Exact where `chosen` (of chosen branches) and `cu_seqlens` (of packed calls) can be read. Tensors without contents, as tracing
    and `meta` have them, leave an upper bound: as if all blocks that a choice may take were full and all tokens in one document.
    Upper bounds as well: relations that `count_keys` finds too complex count as dense.
    """
    if 0 in (shape.batch, shape.heads, shape.tokens):
        return 0
    tensors = [*(chosen[each.name] for each in branch.choices), *([] if cu_seqlens is None else [cu_seqlens])]
    packed = cu_seqlens is not None and any(isinstance(each, SameDocument) for each in walk(branch.where))
    if not all(_readable(each) for each in tensors):
        return shape.batch * _most_pairs(branch, shape.tokens, shape.heads, shape.kv_heads)
    where = _with_extra_blocks(branch)
    static = rewrite(where, {}, {Chosen(each.name): EMPTY for each in branch.choices})
    if packed and cu_seqlens is not None:
        pairs = _packed_pairs(_lifted(branch, static), branch, shape, cu_seqlens)
    else:
        pairs = shape.batch * _keys_seen(_lifted(branch, static), branch, shape.tokens, shape.heads, shape.kv_heads).sum()
    added = sum(
        _added_by(branch, place, where, static, shape, chosen, cu_seqlens if packed else None) for place in range(len(branch.choices))
    )
    return int(pairs) + added


def _readable(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta


def _with_extra_blocks(branch: Branch) -> Condition:
    """The branch's condition with the blocks of `keep_extra`, which lists of chosen blocks leave out, as a static part."""
    atoms: dict[Condition, Condition] = {}
    for each in branch.choices:
        extra = tokens_of(kept_blocks(replace(each, keep=None)), each.block)
        atoms[Chosen(each.name)] = disjunction(Chosen(each.name), extra)
    return rewrite(branch.where, {}, atoms)


def _lifted(branch: Branch, where: Condition) -> Condition:
    memory = branch.memory
    return lift_to_slots(where, memory.block, memory.stride) if isinstance(memory, Compress) else where


@lru_cache(maxsize=32)
def _keys_seen(relation: Condition, branch: Branch, n: int, heads: int, kv_heads: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Keys or slots that each query sees, one document: (heads, n)."""
    try:
        return count_keys(relation, n, heads=heads, kv_heads=kv_heads, keys=key_positions(branch))
    except TooComplex:
        return np.full((heads, n), max(0, evaluate(key_positions(branch), {"N": n})), np.int64)


def _most_pairs(branch: Branch, n: int, heads: int, kv_heads: int) -> int:
    """Pairs when every choice takes as much as it can, one document."""
    may = _lifted(branch, bounded(branch.where, {each.name: each for each in branch.choices}, must=False))
    most = _keys_seen(may, branch, n, heads, kv_heads)
    if branch.choices:
        static = rewrite(_with_extra_blocks(branch), {}, {Chosen(each.name): EMPTY for each in branch.choices})
        room = sum((each.count or n) * each.block for each in branch.choices)
        most = np.minimum(most, _keys_seen(static, branch, n, heads, kv_heads) + room)
    return int(most.sum())


def _packed_pairs(relation: Condition, branch: Branch, shape: Shape, cu_seqlens: Tensor) -> int:
    """Pairs within each document, by evaluation. relation: of tokens or, lifted, of slots."""
    block, stride = (branch.memory.block, branch.memory.stride) if isinstance(branch.memory, Compress) else (1, 1)
    heads = torch.arange(shape.heads if "h" in symbols(relation) else 1, device=cu_seqlens.device)[:, None, None]
    pairs = 0
    borders = cu_seqlens.tolist()
    for start, end in pairwise(borders):
        first, last = -(-start // stride), (end - block) // stride
        keys = torch.arange(first, max(first, last + 1), device=heads.device)
        rows = max(1, _PAIRS_AT_ONCE // max(1, len(keys) * len(heads)))
        for row in range(start, end, rows):
            queries = torch.arange(row, min(end, row + rows), device=heads.device)[None, :, None]
            allowed = _truth(relation, shape, {"i": queries, "j": keys[None, None, :], "h": heads, "same_document": True})
            pairs += int(allowed.expand(len(heads), queries.shape[1], len(keys)).sum())
    return pairs * shape.heads // len(heads)


def _truth(relation: Condition, shape: Shape, environment: Mapping[str, Any]) -> Tensor:
    sizes = {"N": shape.tokens, "heads": shape.heads, "kv_heads": shape.kv_heads}
    return torch.as_tensor(evaluate(relation, {**sizes, **environment}), device=environment["i"].device)


def _added_by(
    branch: Branch, place: int, where: Condition, static: Condition, shape: Shape, chosen: Mapping[str, Tensor], cu_seqlens: Tensor | None
) -> int:
    """Pairs that the blocks listed by the branch's choice number `place` add to the static ones (or, by a difference, take from
    them), of tokens that no earlier choice lists."""
    choice, others = branch.choices[place], [each for n, each in enumerate(branch.choices) if n != place]
    device = chosen[choice.name].device
    apart = shape.heads if "h" in symbols(where) or any(each.share == "head" for each in branch.choices) else shape.kv_heads
    heads = torch.arange(0, shape.heads, max(1, shape.heads // max(1, apart)), device=device)
    document = None
    if cu_seqlens is not None:
        document = torch.bucketize(torch.arange(shape.tokens, dtype=torch.int32, device=device), cu_seqlens, right=True)
    width = max(1, shape.batch * len(heads) * (choice.count or 1) * choice.block)
    added = 0
    for queries in torch.split(torch.arange(shape.tokens, device=device), max(1, _PAIRS_AT_ONCE // width)):
        blocks = _listed(choice, chosen, heads, queries, shape)
        tokens = blocks[..., None] * choice.block + torch.arange(choice.block, device=device)
        i, h = queries[:, None, None], heads[:, None, None, None]
        inside = (blocks[..., None] >= 0) & (tokens < shape.tokens)
        environment: dict[str, Any] = {"i": i, "j": tokens, "h": h, f"chosen:{choice.name}": True, "same_document": True}
        if document is not None:
            environment["same_document"] = document[tokens.clamp(0, shape.tokens - 1)] == document[i]
        for other in others:
            lists = _listed(other, chosen, heads, queries, shape)[..., None, None, :]
            environment[f"chosen:{other.name}"] = (tokens[..., None] // other.block == lists).any(-1)
        for earlier in branch.choices[:place]:
            inside = inside & ~environment[f"chosen:{earlier.name}"]
        now, before = (_truth(each, shape, environment).expand(inside.shape) for each in (where, static))
        added += int((now & ~before & inside).sum()) - int((before & ~now & inside).sum())
    return added * shape.heads // len(heads)


def _listed(choice: Choice, chosen: Mapping[str, Tensor], heads: Tensor, queries: Tensor, shape: Shape) -> Tensor:
    """The blocks that a choice lists for some heads and queries: int64 (batch, heads, queries, n)."""
    units = {"head": heads, "group": heads * shape.kv_heads // shape.heads, "all": torch.zeros_like(heads)}[choice.share]
    return chosen[choice.name][:, units[:, None], queries // choice.every].to(torch.int64)
