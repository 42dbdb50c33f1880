"""What the feature tests share: a small call, and one assertion that a spec's kernels agree with the dense reference on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nsa_dsl import reference
from nsa_dsl.compare import Mismatch
from nsa_dsl.loader import load_spec
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.cases import Case
from nsa_dsl.verify.checks import check_results, with_extra
from nsa_dsl.verify.damage import check_damage
from nsa_dsl.verify.example import check_case
from nsa_dsl.verify.gradients import check_gradients
from nsa_dsl.verify.inputs import Inputs, make_inputs
from nsa_dsl.verify.transposed import check_transposed

CPU = torch.device("cpu")

USUAL = Case(
    tokens=45, batch=1, heads=4, kv_heads=2, d_qk=16, d_v=24, dtype="fp32", layout="packed", values="ordinary", damage="none", damaged=0,
    documents=1, rows=16, cols=16, seed=0,
)  # fmt: skip
"""Odd on purpose: a length that ends inside a tile, d_qk unlike d_v, strides unlike those of contiguous tensors, NaN around all of it."""


def parse(text: str) -> Pattern:
    """The first pattern of a spec. Text without a declaration is the body of one."""
    spec = load_spec(text if "pattern" in text else f"pattern tried {{ {text} }}")
    return spec.pattern(spec.patterns[0])


def compiled(pattern: Pattern, case: Case) -> AttentionOp:
    """The pattern's op with the case's tiles."""
    return AttentionOp(pattern, rows=case.rows, cols=case.cols)


def inputs_of(pattern: Pattern, case: Case) -> Inputs:
    """Tensors of the case; the same case always gives the same."""
    return make_inputs(pattern, case, CPU)


def agree(text: str, *, visible: bool = True, **changes: Any) -> None:
    """Results, choices and exact visibility are the reference's. visible: False leaves visibility out. changes: to the usual case."""
    pattern, case = parse(text), replace(USUAL, **changes)
    op = compiled(pattern, case)
    refuse(check_case(op, case, CPU) if visible else check_results(op, case, inputs_of(pattern, case)))


def agree_on(text: str, inputs: Inputs, **changes: Any) -> None:
    """Results and choices are the reference's on these inputs. changes: to the usual case; it must have the inputs' sizes."""
    pattern, case = parse(text), replace(USUAL, **changes)
    refuse(check_results(compiled(pattern, case), case, inputs))


def agree_in_gradients(text: str, **changes: Any) -> None:
    """Gradients, for cotangents of output and log-sum-exps, are those of float64 autograd through the reference, and key gradients sum
    over exactly the queries that see the key. changes: to the usual case; damage is checked instead if there is some."""
    pattern, case = parse(text), replace(USUAL, **{"gradients": "out and lse", "tokens": 29, **changes})
    op, inputs = compiled(pattern, case), inputs_of(pattern, case)
    refuse([*(check_gradients if case.damage == "none" else check_damage)(op, case, inputs), *check_transposed(op, case, CPU)])


def refuse(found: list[Mismatch]) -> None:
    """Fail if anything was found."""
    assert not found, "\n".join(map(str, found))


def call(text: str, inputs: Inputs, **changes: Any) -> tuple[Any, Any, dict[str, Tensor]]:
    """(output, log-sum-exp) of the op, the same of the reference in float64 on the op's choices, and these choices."""
    pattern, case = parse(text), replace(USUAL, **changes)
    op = compiled(pattern, case)
    chosen = op.choose(inputs.q, inputs.k, inputs.v, **{name: each for name, each in inputs.options.items() if name != "gates"})
    made = op(inputs.q, inputs.k, inputs.v, **inputs.options, return_lse=True)
    options = {**inputs.options, "choices": with_extra(pattern, case, chosen)}
    return made, reference.attend(pattern, inputs.q, inputs.k, inputs.v, **options, return_lse=True), chosen
