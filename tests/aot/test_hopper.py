"""The Gluon kernels of the forward pass compile for Hopper, fit its shared memory and hardly spill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nsa_dsl.ahead import compile_launch, record_launches
from nsa_dsl.launch import LaunchShape
from nsa_dsl.loader import load_spec

EXAMPLES = Path(__file__).parents[2] / "examples"

MOST_SPILLED = 64
"""Bytes a thread may keep in local memory. A consumer has 240 registers; what does not fit is in its loop."""


@pytest.mark.parametrize(
    ("example", "name", "dim", "kernels"),
    [("nsa", "nsa", 128, 2), ("causal", "causal", 64, 1), ("streaming", "streaming", 128, 1)],
    ids=lambda each: str(each),
)
def test_forward(example: str, name: str, dim: int, kernels: int, record_property: Callable[[str, object], None]) -> None:
    launches = record_launches(load_spec(EXAMPLES / f"{example}.nsa").pattern(name), LaunchShape(dim, dim, "bf16", "sm_90"))
    reports = [compile_launch(each, "sm_90") for each in launches if each.kernel.is_gluon()]
    assert sum(each.kernel.startswith("attend_") for each in reports) == kernels
    for each in reports:
        record_property("kernel", f"{each.card} {each.kernel} {each.shared} {each.registers} {each.spills}")
        assert each.shared <= each.limit
        assert each.spills is None or each.spills <= MOST_SPILLED
