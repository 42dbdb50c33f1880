"""The flat order in which a pattern's tensors cross the boundary of an operator."""

from __future__ import annotations

import pytest
import torch
from op_cases import TEXTS, parse

from nsa_dsl.marshal import group
from nsa_dsl.signing import sign


def test_what_a_call_passes_returns_and_keeps() -> None:
    """Slots made by modules are inputs; scores by which blocks were chosen are not kept; equal branches are computed once."""
    found = sign(parse(TEXTS["nsa"]))
    assert found.inputs == ("q", "k", "v", "gates", "slots.summary.keys", "slots.summary.values", "choices.selected")
    assert found.differentiable == set(found.inputs) - {"choices.selected"}
    branches = ("compressed", "selected", "windowed")
    assert found.saved == (*(f"lse.{each}" for each in branches), *(f"branch.{each}" for each in branches), "chosen.selected")
    assert found.outputs == ("out", *found.saved)
    assert found.read_backward == found.differentiable
    equal = sign(parse(TEXTS["equal branches"]))
    assert equal.workers == (("a", "a"), ("b", "a"), ("c", "c"))
    assert equal.lses == ("a", "c")


def test_branches_that_only_score_have_no_gradient() -> None:
    found = sign(parse(TEXTS["apart"]))
    assert {"k.a", "v.a", "slots.m.a.keys", "slots.m.a.values", "choices.b"} <= set(found.inputs) - found.differentiable
    # Of e, gradients reach the keys through the module, outside the operator.
    assert {"slots.m.e.keys", "slots.m.e.values"} <= found.differentiable
    assert not {"k.e", "v.e"} & found.differentiable
    assert {"weights.w.keys", "k.c", "sinks.d", "q", "gates"} <= found.differentiable


@pytest.mark.parametrize(("name", "kept"), [("merge", ("out", "lse.merge")), ("single", ("out", "lse.output"))])
def test_one_softmax_keeps_its_output(name: str, kept: tuple[str, ...]) -> None:
    assert sign(parse(TEXTS[name])).saved == kept


def test_dead_branches_are_no_inputs() -> None:
    found = sign(parse("kv per branch a = attend(tokens, causal) b = attend(tokens, causal, sink = learned) output a"))
    assert found.inputs == ("q", "k.a", "v.a")


def test_names_become_nested_arguments() -> None:
    names = ("q", "k.a", "k.b", "weights.keys.keys", "weights.keys.values", "slots.m.a.keys", "slots.m.a.values", "chosen.a_2")
    numbers = {name: torch.tensor(n) for n, name in enumerate(names)}
    made = group(numbers.items())
    assert made["k"] == {"a": numbers["k.a"], "b": numbers["k.b"]}
    assert made["weights"] == {"keys": (numbers["weights.keys.keys"], numbers["weights.keys.values"])}
    assert made["slots"] == {"m.a": (numbers["slots.m.a.keys"], numbers["slots.m.a.values"])}
    assert (made["q"], made["chosen"]) == (numbers["q"], {"a_2": numbers["chosen.a_2"]})
