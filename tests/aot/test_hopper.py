"""The Gluon kernels of the forward pass compile for Hopper, fit its shared memory and hardly spill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nsa_dsl.ahead import compile_launch, record_launches
from nsa_dsl.launch import LaunchShape
from nsa_dsl.loader import load_spec

ROOT = Path(__file__).parents[2]

MOST_SPILLED = 64
"""Bytes a thread may keep in local memory. A consumer has 240 registers; what does not fit is in its loop."""


@pytest.mark.parametrize(
    ("spec", "name", "own", "dim", "kernels"),
    [
        ("examples/nsa", "nsa", {}, 128, 2),
        ("examples/causal", "causal", {}, 64, 1),
        ("examples/streaming", "streaming", {}, 128, 1),
        ("benchmarks/patterns", "blocks", {"b": 64}, 128, 1),
    ],
    ids=lambda each: str(each),
)
def test_forward(spec: str, name: str, own: dict[str, int], dim: int, kernels: int, record_property: Callable[[str, object], None]) -> None:
    launches = record_launches(load_spec(ROOT / f"{spec}.nsa").pattern(name, **own), LaunchShape(dim, dim, "bf16", "sm_90"))
    reports = [compile_launch(each, "sm_90") for each in launches if each.kernel.is_gluon()]
    assert sum(each.kernel.startswith("attend_") for each in reports) == kernels
    for each in reports:
        record_property("kernel", f"{each.card} {each.kernel} {each.shared} {each.registers} {each.spills}")
        assert each.shared <= each.limit
        assert each.spills is None or each.spills <= MOST_SPILLED
