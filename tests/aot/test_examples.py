"""Every example's kernels compile for every architecture, and fit its shared memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nsa_dsl.ahead import TARGETS, KernelReport, compile_ahead
from nsa_dsl.loader import load_spec
from nsa_dsl.schedule import CARDS, LaunchShape

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.nsa"))
CASES = [(path, name) for path in EXAMPLES for name in load_spec(path).patterns]
EVERY_TEMPLATE = ("nsa", "asa", "longformer")
"""Files whose patterns use every template between them, with every kind of loop."""

MOST_SPILLED = 256
"""Bytes a thread may keep in local memory: a few registers saved once, not a loop that runs through memory."""


def check(reports: list[KernelReport], record_property: Callable[[str, object], None]) -> None:
    assert reports
    for each in reports:
        record_property("kernel", f"{each.card} {each.kernel} {each.shared} {each.registers} {each.spills}")
        assert each.shared <= each.limit, f"{each.kernel} needs {each.shared} bytes of shared memory; {each.card} has {each.limit}"
        assert each.spills is None or each.spills <= MOST_SPILLED, f"{each.kernel} spills {each.spills} bytes a thread on {each.card}"


@pytest.mark.parametrize("card", TARGETS)
@pytest.mark.parametrize(("path", "name"), CASES, ids=[f"{path.stem}.{name}" for path, name in CASES])
def test_example_compiles(path: Path, name: str, card: str, record_property: Callable[[str, object], None]) -> None:
    """Backward kernels of all examples on one architecture, and every template's on all."""
    backward = card == "sm_90" or path.stem in EVERY_TEMPLATE
    check(compile_ahead(load_spec(path).pattern(name), card, backward=backward), record_property)


@pytest.mark.parametrize(
    "shape",
    [LaunchShape(192, 128, "bf16"), LaunchShape(256, 256, "fp16"), LaunchShape(40, 40, "fp16"), LaunchShape(128, 128, "fp32")],
    ids=lambda shape: f"{shape.dim_qk}-{shape.dim_v}-{shape.dtype}",
)
@pytest.mark.parametrize("card", ["sm_90", "gfx942"])
def test_other_shapes_fit(shape: LaunchShape, card: str, record_property: Callable[[str, object], None]) -> None:
    """The widest head dimensions and float32, where shared memory runs out first."""
    check(compile_ahead(load_spec(EXAMPLES[0].parent / "nsa.nsa").pattern("nsa"), card, shape), record_property)


def test_every_target_has_a_limit() -> None:
    assert set(TARGETS) <= set(CARDS)


def test_too_much_shared_memory_is_caught(record_property: Callable[[str, object], None]) -> None:
    """Tiles that do not fit: Triton compiles them without a word, the check must not."""
    shape = LaunchShape(256, 256, "fp32", rows=128, cols=128)
    with pytest.raises(AssertionError, match="bytes of shared memory"):
        check(compile_ahead(load_spec(EXAMPLES[0].parent / "causal.nsa").pattern("causal"), "gfx942", shape), record_property)
