"""Every example's kernels compile for one architecture, every template's for all, and fit its shared memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nsa_dsl.ahead import TARGETS, KernelReport, compile_ahead, compile_launch, record_launches
from nsa_dsl.launch import CARDS, LaunchShape
from nsa_dsl.loader import load_spec

EXAMPLES = Path(__file__).parents[2] / "examples"
ON_ALL_CARDS = {("nsa", "nsa"): True, ("asa", "global"): True, ("longformer", "longformer"): True, ("moba", "moba"): False}
"""Patterns that use every template between them, with every kind of loop; and whether that takes their backward kernels as well."""
CASES = [
    (path.stem, name, card, card == "sm_90" or ON_ALL_CARDS[path.stem, name])
    for path in sorted(EXAMPLES.glob("*.nsa"))
    for name in load_spec(path).patterns
    for card in TARGETS
    if card == "sm_90" or (path.stem, name) in ON_ALL_CARDS
]
"""Every pattern on one architecture."""

MOST_SPILLED = 256
"""Bytes a thread may keep in local memory: a few registers saved once, not a loop that runs through memory."""


def check(reports: list[KernelReport], record_property: Callable[[str, object], None]) -> None:
    assert reports
    for each in reports:
        record_property("kernel", f"{each.card} {each.kernel} {each.shared} {each.registers} {each.spills}")
        assert each.shared <= each.limit, f"{each.kernel} needs {each.shared} bytes of shared memory; {each.card} has {each.limit}"
        assert each.spills is None or each.spills <= MOST_SPILLED, f"{each.kernel} spills {each.spills} bytes a thread on {each.card}"


@pytest.mark.parametrize(("file", "name", "card", "backward"), CASES, ids=[f"{file}.{name}-{card}" for file, name, card, _ in CASES])
def test_example_compiles(file: str, name: str, card: str, backward: bool, record_property: Callable[[str, object], None]) -> None:
    """The kernels that are not for Hopper alone; those: test_hopper."""
    pattern = load_spec(EXAMPLES / f"{file}.nsa").pattern(name)
    check(compile_ahead(pattern, card, LaunchShape(templates="portable"), backward=backward), record_property)


@pytest.mark.parametrize(
    ("shape", "card"),
    [
        (LaunchShape(192, 128, "bf16"), "sm_90"),
        (LaunchShape(256, 256, "fp16"), "sm_90"),
        (LaunchShape(256, 256, "fp16"), "gfx942"),
        (LaunchShape(40, 40, "fp16"), "sm_90"),
        (LaunchShape(128, 128, "fp32"), "sm_90"),
        (LaunchShape(128, 128, "fp32"), "gfx942"),
    ],
    ids=lambda each: f"{each.dim_qk}-{each.dim_v}-{each.dtype}" if isinstance(each, LaunchShape) else each,
)
def test_other_shapes_fit(shape: LaunchShape, card: str, record_property: Callable[[str, object], None]) -> None:
    """The widest head dimensions and float32, where shared memory runs out first."""
    check(compile_ahead(load_spec(EXAMPLES / "nsa.nsa").pattern("nsa"), card, shape), record_property)


@pytest.mark.parametrize("card", TARGETS)
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_small_groups_compile(card: str, kv_heads: int, record_property: Callable[[str, object], None]) -> None:
    """Groups of few heads and many queries: by blocks, whose kernels no example's size asks for; groups of two heads by unions as well,
    which cannot pay for those of one."""
    pattern = load_spec(EXAMPLES.parent / "benchmarks" / "patterns.nsa").pattern("selected")
    launches = record_launches(pattern, LaunchShape(card=card), tokens=2**17, heads=2, kv_heads=kv_heads)
    of_blocks = {"mark_lists", "count_lists", "place_lists", "list_items", "attend_output_by_blocks", "attend_output_merged"}
    of_unions = {"unite_blocks", "attend_output_union"} if kv_heads == 1 else set()
    assert {each.kernel.__name__ for each in launches} == {"list_blocks", "find_wild", "attend_output"} | of_blocks | of_unions
    check([compile_launch(each, card) for each in launches], record_property)


def test_every_target_has_a_limit() -> None:
    assert set(TARGETS) <= set(CARDS)


def test_too_much_shared_memory_is_caught(record_property: Callable[[str, object], None]) -> None:
    """Tiles that do not fit: Triton compiles them without a word, the check must not."""
    shape = LaunchShape(256, 256, "fp32", rows=16, cols=128)
    with pytest.raises(AssertionError, match="bytes of shared memory"):
        check(compile_ahead(load_spec(EXAMPLES / "causal.nsa").pattern("causal"), "gfx942", shape, backward=False), record_property)
