"""NSA of the package fla (flash-linear-attention), for patterns that are NSA."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_dsl.bench.contender import Case, Prepared, Refused
from nsa_dsl.pattern import Branch, BranchScore, Choice, Compress, Pattern, Tokens
from nsa_dsl.relation import CAUSAL, Chosen, Condition, choices, conjunction, evaluate, symbols

LEAST_GROUP = 16
WIDEST = 1 << 16
"""Keys of a window that is recognised as one."""
EASIER = "mean-pools blocks that are the selected blocks (l = d = block) and does not learn to compress: an easier problem"
NO_WINDOW = "; without the window, which needs flash-attn"


@dataclass(frozen=True, slots=True)
class Nsa:
    """The parameters of an NSA pattern. compressed, selected, windowed: places of the branches among the gates; block, count: of the
    choice; window: keys, the query's own included."""

    compressed: int
    selected: int
    windowed: int
    block: int
    count: int
    window: int


def as_nsa(pattern: Pattern) -> Nsa | None:
    """The parameters if the pattern is gated compressed, selected and windowed attention as in NSA; else None."""
    places = {_role(each): place for place, each in enumerate(pattern.outputs)}
    if pattern.output.kind != "gate" or len(pattern.outputs) != 3 or set(places) != {"compressed", "selected", "windowed"}:
        return None
    chosen = pattern.outputs[places["selected"]].choices[0]
    if not isinstance(chosen.score, BranchScore) or chosen.score.branch != pattern.outputs[places["compressed"]].name:
        return None
    window = _window(pattern.outputs[places["windowed"]].where)
    assert chosen.count is not None
    assert window is not None
    return Nsa(places["compressed"], places["selected"], places["windowed"], chosen.block, chosen.count, window)


def _role(branch: Branch) -> str | None:
    if isinstance(branch.memory, Compress):
        return "compressed" if branch.where == CAUSAL and not branch.choices else None
    if not isinstance(branch.memory, Tokens):
        return None
    match branch.choices:
        case ():
            return None if _window(branch.where) is None else "windowed"
        case (Choice(rule="top", count=int(), share="group", every=1, queries=1) as choice,):
            return "selected" if branch.where == conjunction(CAUSAL, Chosen(choice.name)) else None
        case _:
            return None


def _window(where: Condition) -> int | None:
    """The width of a relation that is a causal window, judged at positions around its borders; None for any other."""
    if choices(where) or not symbols(where) <= {"i", "j"}:
        return None
    far = WIDEST
    seen = evaluate(where, {"i": far, "j": torch.arange(far + 2), "same_document": True})
    if not isinstance(seen, Tensor):
        return None
    width = int(seen.sum())
    for i in (0, width, far):
        j = torch.arange(far + 2)
        if not torch.equal(evaluate(where, {"i": i, "j": j, "same_document": True}), (j <= i) & (j > i - width)):
            return None
    return width if 0 < width <= far else None


def prepare_fla(case: Case) -> Prepared:
    """fla's `parallel_nsa` on the same q, k, v and gates. Raises Refused where it is not installed or cannot compute the shape."""
    nsa = as_nsa(case.pattern)
    if nsa is None:
        raise Refused("NSA only")
    shape = case.shape
    group = shape.heads // shape.kv_heads
    if group < LEAST_GROUP or group & (group - 1):
        raise Refused(f"groups of {LEAST_GROUP} query heads or a greater power of two only")
    attend, windowed = _imported()
    q, k, v = case.leaves()
    gates = case.inputs.options["gates"].detach().requires_grad_()

    def forward() -> Tensor:
        shares = gates.sigmoid().transpose(1, 2)
        out: Tensor = attend(
            *(each.transpose(1, 2) for each in (q, k, v)),
            g_cmp=shares[..., nsa.compressed].contiguous(),
            g_slc=shares[..., nsa.selected].contiguous(),
            g_swa=shares[..., nsa.windowed].contiguous(),
            block_counts=nsa.count,
            block_size=nsa.block,
            window_size=nsa.window if windowed else 0,
        )
        return out.transpose(1, 2)

    # The gate of a window that is left out has no gradient.
    leaves = (q, k, v, gates)
    return Prepared(forward, leaves, case.cotangent, None, note=EASIER + ("" if windowed else NO_WINDOW))


def _imported() -> tuple[Any, bool]:
    """The function, and whether its window can run."""
    try:
        with warnings.catch_warnings():
            # It says on import that flash-attn is missing, which the note says as well.
            warnings.simplefilter("ignore")
            attend = importlib.import_module("fla.ops.nsa").parallel_nsa
    except ModuleNotFoundError as missing:
        raise Refused(f"not installed ({missing.name} is missing)") from missing
    return attend, importlib.util.find_spec("flash_attn") is not None
