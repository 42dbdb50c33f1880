"""One example: everything that is checked of one call, forward and backward."""

from __future__ import annotations

import torch

from nsa_dsl.compare import Mismatch
from nsa_dsl.op import AttentionOp
from nsa_dsl.verify.cases import Case
from nsa_dsl.verify.checks import check_results, check_visibility
from nsa_dsl.verify.damage import check_damage
from nsa_dsl.verify.gradients import check_gradients
from nsa_dsl.verify.inputs import make_inputs
from nsa_dsl.verify.transposed import check_transposed


def check_case(op: AttentionOp, case: Case, device: torch.device) -> list[Mismatch]:
    """What is wrong with one call of the op; nothing if it agrees with the dense reference of `op.pattern`.

    Two things are looked at: results and visibility of a forward call, or results and gradients, or visibility and its transpose.
    """
    if case.gradients == "structure":
        return [*check_visibility(op, case, device), *check_transposed(op, case, device)]
    inputs = make_inputs(op.pattern, case, device)
    found = check_results(op, case, inputs)
    if case.gradients == "none":
        return found + check_visibility(op, case, device)
    # With no token there is nothing to damage.
    return found + (check_damage if case.damage != "none" and case.tokens else check_gradients)(op, case, inputs)
