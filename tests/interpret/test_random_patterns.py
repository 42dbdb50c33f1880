"""Whole random patterns: what a user could have written compiles, and its kernels agree with the reference, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings

from nsa_dsl.compiler import compile_backward, compile_source
from nsa_dsl.launch import LaunchShape
from nsa_dsl.pattern import Pattern
from nsa_dsl.testing import patterns, verify_random
from nsa_dsl.testing.search import pattern_of
from nsa_dsl.verify.cases import INTERPRETER

EXAMPLES = 8
SEEDS = (0, 1)
PARTS = (
    "output gate(", "output mix(", "output merge(", "by = mlp)", "by = max)", "by = weighted)", "kv per branch", "sink = learned",
    "softcap = ", "bias = alibi", "scale = ", "document", "by = scores", "by = indices", "by = minmax", "by = b", "share = all",
    "every = ", "keep = ", "keep_extra = ", "i, j, h", "union p in", "neighborhood(",
)  # fmt: skip


@pytest.fixture
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(INTERPRETER, lengths=48, steps=120, heads=((1, 1), (2, 1), (3, 1), (4, 2)))
    monkeypatch.setattr("nsa_dsl.verify.search.INTERPRETER", short)
    monkeypatch.setattr("nsa_dsl.verify.search.SHRINK_SECONDS", 2.0)


@pytest.mark.usefixtures("short_calls")
@pytest.mark.parametrize("seed", SEEDS)
def test_random_patterns_agree_with_the_reference(seed: int) -> None:
    report = verify_random(EXAMPLES, seed=seed)
    assert report.ok, str(report)
    assert report.examples > EXAMPLES // 2
    assert report.gradients > 0


@pytest.mark.usefixtures("short_calls")
def test_a_failure_shows_the_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gradient twice as large as it should be."""

    def faulty(pattern: Pattern, shape: LaunchShape) -> str:
        return compile_backward(pattern, shape).replace("found[name] = grads[name]", "found[name] = 2 * grads[name]")

    monkeypatch.setattr("nsa_dsl.op.compile_backward", faulty)
    report = verify_random(20, seed=2)
    assert report.failure is not None
    text = str(report)
    assert "    | pattern drawn {" in text
    assert "gradient of " in text
    assert pattern_of(report.failure.text).name == "drawn"


@given(text=patterns())
@settings(max_examples=40)
def test_patterns_compile(text: str) -> None:
    """Forward and backward, for whatever is drawn."""
    pattern, shape = pattern_of(text), LaunchShape(rows=16, cols=16, dtype="fp32", card="interpreter")
    assert "def run(" in compile_source(pattern, shape)
    assert "def run_backward(" in compile_backward(pattern, shape)


def test_patterns_reach_every_part_of_the_language() -> None:
    """Whatever has kernels can be drawn."""
    missing = set(PARTS)

    @given(text=patterns())
    @settings(max_examples=400, phases=(Phase.generate,))
    def draw(text: str) -> None:
        missing.difference_update([each for each in missing if each in text])

    draw()
    assert not missing
