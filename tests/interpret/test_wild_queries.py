"""A query that is not finite changes the gradients of the keys and values that it sees, and of nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from interpret.support import USUAL, compiled, inputs_of, parse, refuse

from nsa_dsl.verify.damage import check_damage

FAR = "{ i, j : j + 12 <= i }"
CHOSEN = f"attend(tokens, {FAR} & top(2, block = 16, by = scores, share = group))"

PATTERNS = {
    "alone": f"output {CHOSEN}",
    "merged": f"s = compress(block = 8, stride = 8, by = mean) a = {CHOSEN} b = attend(s, causal) output merge(a, b)",
    # Of these two the second branch's log-sum-exp is finite in row 5, whatever the query.
    "beside a sink": f"a = {CHOSEN} b = attend(tokens, {FAR}, sink = learned) output gate(a, b)",
    "beside a soft cap": f"a = {CHOSEN} b = attend(tokens, window(2), softcap = 3.0) output gate(a, b)",
}


@pytest.mark.parametrize(
    ("name", "token", "bad"),
    [
        ("alone", 5, math.nan),
        ("alone", 5, -math.inf),
        ("alone", 19, math.inf),
        ("merged", 5, math.inf),
        ("merged", 19, math.nan),
        ("beside a sink", 5, math.nan),
        ("beside a soft cap", 5, math.inf),
    ],
)
def test_a_query_that_is_not_finite(name: str, token: int, bad: float) -> None:
    """Row 5 sees no keys but those of the window, row 19 some; the lists of both have blocks in which others see more."""
    pattern = parse(PATTERNS[name])
    case = replace(USUAL, gradients="out and lse", tokens=33, heads=2, kv_heads=1, seed=1, damage="query", damaged=token)
    inputs = inputs_of(pattern, replace(case, damage="none"))
    inputs.q[:, :, token, 3] = bad
    found = check_damage(compiled(pattern, case), case, inputs)
    # A soft cap makes infinite scores finite, so that nothing need show.
    refuse([each for each in found if "cap" not in name or "no number" not in each.note])
