"""Gradients of one call, held to float64 autograd through the dense reference with the choice held fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.compare import Mismatch, check_rows
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.cases import Case
from nsa_dsl.verify.checks import FLOAT32, baseline_error, greatest, named, random_choices, with_extra
from nsa_dsl.verify.inputs import Inputs, all_choices, place
from nsa_dsl.verify.leaves import Leaves, gradients, watch
from nsa_dsl.verify.magnitudes import magnitudes
from nsa_dsl.verify.slots import give_slots


@dataclass(frozen=True, slots=True, eq=False)
class Cotangents:
    """What a call is differentiated by. out: like the output; lse: by branch ("" when the call returns one tensor), maybe none."""

    out: Tensor
    lse: dict[str, Tensor]

    def of(self, out: Tensor, lse: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Results and their cotangents, in one order."""
        results = named(lse)
        return [out, *(results[name] for name in self.lse)], [self.out, *self.lse.values()]


def check_gradients(op: AttentionOp, case: Case, inputs: Inputs) -> list[Mismatch]:
    """Gradients of every differentiable input, for random cotangents. Inputs without damage; see `check_results` for their sizes.

    Every other call the choice is the op's own, else random blocks; the reference is given the same. Some calls ask for a few of the
    gradients only.
    """
    random = torch.Generator().manual_seed(case.seed + 3)
    chosen = choices_of(op, case, inputs, own=case.seed % 2 == 0)
    shown = with_extra(op.pattern, case, chosen)
    if case.seed % 2:
        inputs = replace_options(inputs, choices=chosen)
    wanted = _some(watch(inputs)[1], random) if case.seed % 3 == 0 else None
    cotangents = draw_cotangents(op.pattern, case, inputs, random)
    actual = op_gradients(op, inputs, cotangents, wanted)
    with torch.no_grad():
        pattern, given, found = give_slots(op, inputs.k, inputs.v, inputs.options)
    given["choices"] = shown
    if "gates" in given:
        given["gates"] = inputs.options["gates"]
    exact, lse = _reference_gradients(pattern, inputs, given, cotangents, torch.float64)
    rounded, _ = _reference_gradients(pattern, inputs, given, cotangents, inputs.q.dtype)
    added = magnitudes(pattern, inputs, given, cotangents.out, cotangents.lse, inputs.q.dtype)
    rounding = torch.finfo(inputs.q.dtype).eps + 8 * FLOAT32 * greatest(lse)
    for name, gradient in actual.items():
        amount = added.get(name, torch.zeros_like(exact[name]))
        found += check_gradient(name, gradient, exact[name], rounded[name], amount, rounding)
    return found


def choices_of(op: AttentionOp, case: Case, inputs: Inputs, *, own: bool) -> dict[str, Tensor]:
    """The op's own choices on these inputs, or random ones."""
    if not own:
        return random_choices(op.pattern, case, inputs.q.device)
    if not all_choices(op.pattern):
        return {}
    with torch.no_grad():
        return op.choose(inputs.q, inputs.k, inputs.v, **{name: each for name, each in inputs.options.items() if name != "gates"})


def replace_options(inputs: Inputs, **options: Any) -> Inputs:
    """The same call with further keyword arguments; one that is empty is left out."""
    return replace(inputs, options={**inputs.options, **{name: each for name, each in options.items() if each}})


def _some(leaves: Leaves, random: torch.Generator) -> list[str]:
    """One name at least."""
    names = list(leaves)
    kept = torch.rand(len(names), generator=random) < 0.4
    return [name for name, keep in zip(names, kept.tolist(), strict=True) if keep] or names[:1]


def draw_cotangents(pattern: Pattern, case: Case, inputs: Inputs, random: torch.Generator) -> Cotangents:
    """Random ones: the output's laid out like the inputs, or in two ways that only a gradient has: one number for all entries, as a sum's
    gradient, and features that do not lie side by side."""
    rows = (case.batch, case.heads, case.tokens)
    q = inputs.q
    drawn = torch.randn(*rows, case.d_v, generator=random)
    match case.seed % 5:
        case 0:
            out = torch.ones((), dtype=q.dtype, device=q.device).expand(drawn.shape)
        case 1:
            out = drawn.to(q.device, q.dtype).mT.contiguous().mT
        case _:
            (out,) = place([drawn], case.layout, q.dtype, q.device)
    joint = pattern.output.kind in ("single", "merge")
    names = () if case.gradients != "out and lse" else ("",) if joint else dict.fromkeys(pattern.output.branches)
    return Cotangents(out, {name: torch.randn(rows, generator=random).to(q.device) for name in names})


def op_gradients(op: AttentionOp, inputs: Inputs, cotangents: Cotangents, wanted: list[str] | None = None) -> Leaves:
    """The op's own gradients, of all inputs or of those wanted."""
    with torch.enable_grad():
        live, leaves = watch(inputs, wanted=wanted)
        result: Any = op(live.q, live.k, live.v, **live.options, return_lse=True)
        return gradients(*cotangents.of(*result), leaves)


def _reference_gradients(
    pattern: Pattern, inputs: Inputs, given: Mapping[str, Any], cotangents: Cotangents, dtype: torch.dtype
) -> tuple[Leaves, Any]:
    """The reference's gradients in this precision, over given slots, and its log-sum-exps."""
    with torch.enable_grad():
        live, leaves = watch(inputs, dtype)
        options = {**given, **{name: each for name, each in live.options.items() if name in ("gates", "sinks")}}
        if "compressors" in given:
            options["compressors"] = {name: each.made_with(live.options, each.memory.name) for name, each in given["compressors"].items()}
        out, lse = reference.attend(pattern, live.q, live.k, live.v, **options, dtype=dtype, return_lse=True)
        return gradients(*cotangents.of(out, lse), leaves), lse


def check_gradient(name: str, actual: Tensor, exact: Tensor, rounded: Tensor, added: Tensor, rounding: float) -> list[Mismatch]:
    """One gradient, by the rule of `check_rows`, with what rounding may do to the terms that are added up; exact zeros where there are
    none. Rows are tokens; of gates, weights, sinks and parameters every entry stands for itself."""
    what = f"gradient of {name}"
    if actual.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64) or actual.shape != exact.shape:
        return [Mismatch(what, (), float("nan"), 0.0, f"{actual.dtype} {tuple(actual.shape)}, expected {tuple(exact.shape)}")]
    if name[0] not in "qkv":
        actual, exact, rounded, added = (each[..., None] for each in (actual, exact, rounded, added))
    # What lies beyond its type's range is infinite, and rightly so.
    most = torch.finfo(actual.dtype).max
    actual, exact = actual.clamp(-most, most), exact.clamp(-most, most)
    none = (added == 0).all(-1)
    wrong = none & ~(actual == 0).all(-1)
    found = [
        Mismatch(what, tuple(place), float("nan"), 0.0, "nothing is seen here: expected zero") for place in wrong.nonzero()[:4].tolist()
    ]
    rough = exact + baseline_error(rounded, exact) + 0.5 * rounding * added.amax(-1, keepdim=True)
    return found + check_rows(actual, exact, rough, what=what)
