"""Smaller parameters under which a pattern shows its structure at short lengths, for machines that only bear short ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from nsa_dsl.diagnostics import SpecError
from nsa_dsl.pattern import Compress, Pattern
from nsa_dsl.relation import FULL as ALWAYS
from nsa_dsl.relation import Compare, SameDocument, evaluate, rewrite, walk
from nsa_dsl.resolve.spec import Spec

_STEPS = ((1, 1 << 31), (2, 64), (4, 32), (8, 16), (16, 8), (64, 4))
"""(divisor, greatest value), mildest first. Integers up to 4 count things rather than measure them, and stay."""


def shrink_parameters(spec: Spec, pattern: Pattern, length: int) -> Pattern:
    """The pattern with its integer parameters divided until most of it shows at this length: the mildest of a few ways that are legal.

    Returns the pattern itself when it shows as much as it is, or has no integer parameters.
    """
    best, most = pattern, visible_structure(pattern, length)
    values = dict(pattern.parameters)
    for divisor, greatest in _STEPS[1:]:
        smaller = {name: _smaller(each, divisor, greatest) for name, each in values.items()}
        try:
            candidate = spec.pattern(pattern.name, **smaller)
        except SpecError:
            continue
        shown = visible_structure(candidate, length)
        if shown > most:
            best, most = candidate, shown
    return best


def _smaller(value: int | float | str, divisor: int, greatest: int) -> int | float | str:
    return min(max(value // divisor, 3), greatest) if isinstance(value, int) and value > 4 else value


def visible_structure(pattern: Pattern, length: int) -> int:
    """How many parts of the pattern make a difference at this length: comparisons that are true somewhere and false elsewhere,
    choices that leave blocks out, memories with several slots."""
    shown = 0
    positions: Mapping[str, torch.Tensor | int | bool] = {
        "i": torch.arange(length)[:, None],
        "j": torch.arange(length)[None, :],
        "h": torch.arange(4)[:, None, None],
        "N": length,
        "heads": 4,
        "kv_heads": 1,
    }
    for branch in pattern.branches:
        for atom in {each for each in walk(rewrite(branch.where, {}, {SameDocument(): ALWAYS})) if isinstance(each, Compare)}:
            truth = torch.as_tensor(evaluate(atom, positions))
            shown += bool(truth.any()) and not bool(truth.all())
        shown += sum(-(-length // each.block) > (each.count or 0) for each in branch.choices)
        if isinstance(branch.memory, Compress):
            shown += length >= branch.memory.block + 2 * branch.memory.stride
    return shown
