"""Which keys each query sees: the `where` condition, evaluated at every (query, key) pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nsa_dsl import relation
from nsa_dsl.pattern import Branch, Choice, Compress, NotSupported, Pattern
from nsa_dsl.reference.call import Extent, documents


def choices_of(pattern: Pattern) -> dict[str, tuple[Choice, Branch]]:
    """Every choice of the pattern by name, with the branch that makes it, dead branches included."""
    return {choice.name: (choice, branch) for branch in pattern.branches for choice in branch.choices}


def block_count(choice: Choice, n: int) -> int:
    """How many key blocks there are, the last of them perhaps unfinished."""
    return -(-n // choice.block)


def unit_length(choice: Choice) -> int:
    """How many neighbouring queries share one choice."""
    return max(choice.every, choice.queries)


def positions(choice: Choice, extent: Extent) -> Tensor:
    """(query units,) the query that chooses for each unit: the first of a run, or the last of a tile, which has seen all of it."""
    step = unit_length(choice)
    first = torch.arange(0, extent.n, step, device=extent.device)
    if choice.queries == 1:
        return first
    if choice.every > 1:
        raise NotSupported(f"choice {choice.name!r}: `every` and `queries` exclude each other")
    return (first + step).clamp(max=extent.n) - 1


def begun(choice: Choice, extent: Extent) -> Tensor:
    """(query units, blocks) truth: the block begins at or before the query that chooses; no other may be chosen."""
    block = torch.arange(block_count(choice, extent.n), device=extent.device)
    return block[None, :] * choice.block <= positions(choice, extent)[:, None]


def finished(choice: Choice, extent: Extent) -> Tensor:
    """(query units, blocks) truth: the block ends at or before the query that chooses."""
    end = (torch.arange(block_count(choice, extent.n), device=extent.device) + 1) * choice.block - 1
    return end[None, :] <= positions(choice, extent)[:, None]


def chosen_blocks(choice: Choice, indices: Tensor, extent: Extent, rows: Tensor) -> Tensor:
    """(batch, heads, rows, blocks) truth. indices: (batch, units, query units, width); entries that name no block, or one that
    begins after the choosing query, are ignored."""
    blocks = block_count(choice, extent.n)
    expected = (extent.batch, extent.units(choice), -(-extent.n // unit_length(choice)))
    if indices.dim() != 4 or tuple(indices.shape[:3]) != expected:
        raise ValueError(f"choice {choice.name!r} must be {expected} x width, not {tuple(indices.shape)}")
    picked = indices.to(extent.device, torch.int64)
    picked = torch.where((picked >= 0) & (picked < blocks), picked, blocks)
    member = torch.zeros(*expected, blocks + 1, dtype=torch.bool, device=extent.device)
    member = member.scatter(-1, picked, True)[..., :blocks] & begun(choice, extent)
    return member[:, :, rows // unit_length(choice)].repeat_interleave(extent.heads // max(1, expected[1]), 1)


def visible(branch: Branch, extent: Extent, rows: Tensor, choices: Mapping[str, tuple[Choice, Tensor]]) -> Tensor:
    """(batch or 1, heads, rows, keys) truth, keys being tokens or slots.

    rows: (rows,) query positions. choices: name -> the choice and its indices, for every `Chosen` atom of the branch.
    """
    keys = torch.arange(extent.n, device=extent.device)
    environment: dict[str, Any] = {
        "i": rows[None, None, :, None],
        "j": keys[None, None, None, :],
        "h": torch.arange(extent.heads, device=extent.device)[None, :, None, None],
        "N": extent.n,
        "heads": extent.heads,
        "kv_heads": extent.kv_heads,
        "same_document": extent.document is None or extent.document[rows][:, None] == extent.document[None, :],
    }
    for name in relation.choices(branch.where):
        if name not in choices:
            raise ValueError(f"branch {branch.name!r} sees what {name!r} chose: pass choices={{{name!r}: indices}}")
        choice, indices = choices[name]
        environment[f"chosen:{name}"] = chosen_blocks(choice, indices, extent, rows)[..., keys // choice.block]
    allowed = torch.as_tensor(relation.evaluate(branch.where, environment), device=extent.device)
    batch = allowed.shape[0] if allowed.dim() == 4 else 1
    return _lift(allowed.broadcast_to(batch, extent.heads, len(rows), extent.n), branch)


def _lift(tokens: Tensor, branch: Branch) -> Tensor:
    """A slot is visible when every token that it covers is."""
    memory = branch.memory
    if not isinstance(memory, Compress):
        return tokens
    if tokens.shape[-1] < memory.block:
        return tokens[..., :0]
    return tokens.unfold(-1, memory.block, memory.stride).all(-1)


def mask(
    pattern: Pattern,
    n: int,
    heads: int,
    kv_heads: int,
    choices: Mapping[str, Tensor] | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """What every branch of the output sees: branch name -> (batch or 1, heads, n, tokens or slots) truth.

    choices: name -> (batch, units, query units, width) integers, negative = padding; needed for data-dependent branches.
    Raises ValueError when one is missing or has the wrong shape.
    """
    place = torch.device(device)
    given = choices or {}
    batch = next((each.shape[0] for each in given.values()), 1)
    extent = Extent(batch, heads, kv_heads, n, place, documents(cu_seqlens, n, place))
    made = {name: (choice, given[name]) for name, (choice, _) in choices_of(pattern).items() if name in given}
    rows = torch.arange(n, device=place)
    return {branch.name: visible(branch, extent, rows, made) for branch in pattern.outputs}
