"""Faults planted into generated kernels: each is one that somebody's kernels really had, and verification must catch every one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from nsa_dsl.compiler import compile_source
from nsa_dsl.launch import LaunchShape
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify import verify_pattern
from nsa_dsl.verify.cases import INTERPRETER

WINDOW = "pattern window { output attend(tokens, window(20)) }"
CAUSAL = "pattern causal { output attend(tokens, causal) }"
AROUND = "pattern around { output attend(tokens, around(9, 9)) }"
SCORED = "pattern scored { output attend(tokens, causal & top(2, block = 4, by = scores, share = group, every = 4)) }"
NSA = """
pattern small {
    summary    = compress(block = 4, stride = 2, by = mean)
    compressed = attend(summary, causal)
    selected   = attend(tokens, causal & top(3, block = 8, by = compressed, share = group, every = 4, keep = first(1) | window(1)))
    output gate(compressed, selected)
}
"""
GATED = """
pattern gated {
    far  = attend(tokens, causal & first(4))
    near = attend(tokens, window(8))
    output gate(far, near)
}
"""
EXAMPLES = 16

Fault = Callable[[Pattern, str], str]
"""From a pattern and its source to the source with a fault in it."""


@dataclass(frozen=True)
class Text:
    """A fault in the text: every match of a pattern replaced."""

    old: str
    new: str

    def __call__(self, pattern: Pattern, source: str) -> str:
        changed, hits = re.subn(self.old, self.new, source)
        assert hits, f"{self.old} does not occur in the source of {pattern.name}"
        return changed


def tie_to_the_higher_index(pattern: Pattern, source: str) -> str:
    higher = Text(r"\(level_rank <= level_wanted\)", "(tl.sum(level, 0) - level_rank < level_wanted)")
    ascending = Text(r"place = \(ranks .*", "place = tl.cumsum(taken.to(tl.int32), 0) - 1")
    return ascending(pattern, higher(pattern, source))


def forced_blocks_outside_n(pattern: Pattern, source: str) -> str:
    branches = []
    for each in pattern.branches:
        choices = tuple(replace(choice, keep=None, keep_extra=choice.keep) for choice in each.choices)
        branches.append(replace(each, choices=choices))
    changed = compile_source(replace(pattern, branches=tuple(branches)), _SHAPES[source])
    assert changed != source
    return changed


_SHAPES: dict[str, LaunchShape] = {}

FAULTS: dict[str, tuple[str, Fault]] = {
    "wrong window by one": (WINDOW, Text(r"rows\[:, None\] - 20 <", "rows[:, None] - 21 <")),
    "slot start for slot end": (NSA, Text(r"2 \* cols\[None, :\] \+ 3 <= rows", "2 * cols[None, :] <= rows")),
    "importance index sign": (NSA, Text(r"tl\.maximum\(local - 1, 0\)", "tl.minimum(local + 1, TILE_B - 1)")),
    "tie to the higher index": (SCORED, tie_to_the_higher_index),
    "full flag on a partial tile": (CAUSAL, Text(r"in_range\[None, :\] & \(.*\)", "in_range[None, :] & (cols >= 0)[None, :]")),
    "q strides for v": (CAUSAL, Text(r"\*v\.stride\(\)\[:3\]", "*q.stride()[:3]")),
    "missing edge mask": (AROUND, Text(r"in_range = cols < n_keys", "in_range = cols >= 0")),
    "forced blocks outside n": (NSA, forced_blocks_outside_n),
    "gate applied twice": (GATED, Text(r"tl\.sigmoid\((\w+)\)", r"(tl.sigmoid(\1) * tl.sigmoid(\1))")),
    "32-bit offset": (CAUSAL, Text(r"positions\.to\(tl\.int64\)", "positions")),
}


def parse(text: str) -> Pattern:
    spec = load_spec(text)
    return spec.pattern(spec.patterns[0])


@pytest.fixture(autouse=True)
def quick_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here is that a fault is found, not how small it gets; short calls are enough to see all of these."""
    monkeypatch.setattr("nsa_dsl.verify.search.SHRINK_SECONDS", 1.0)
    short = replace(INTERPRETER, lengths=72, steps=60, heads=((1, 1), (2, 1), (3, 1), (4, 2)))
    monkeypatch.setattr("nsa_dsl.verify.search.INTERPRETER", short)


def plant(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> list[str]:
    """Make every op compile to a faulty source; returns the list that the faulty sources go to."""
    planted: list[str] = []

    def compile_faulty(pattern: Pattern, shape: LaunchShape = LaunchShape()) -> str:  # noqa: B008
        source = compile_source(pattern, shape)
        _SHAPES[source] = shape
        planted.append(fault(pattern, source))
        return planted[-1]

    monkeypatch.setattr("nsa_dsl.op.compile_source", compile_faulty)
    return planted


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, fault = FAULTS[name]
    planted = plant(monkeypatch, fault)
    report = verify_pattern(parse(text), examples=EXAMPLES)
    assert planted
    assert not report.ok, f"{name} went unnoticed"
    assert report.failure is not None
    assert not any("raised" in each.note for each in report.failure.mismatches), str(report)


@pytest.mark.parametrize("text", dict.fromkeys(text for text, _ in FAULTS.values()))
def test_sound_source_passes_the_same_examples(text: str) -> None:
    report = verify_pattern(parse(text), examples=EXAMPLES)
    assert report.ok, str(report)
    assert report.examples == EXAMPLES
