"""Instantiating declarations from Python: overrides and arguments, good and bad."""

from __future__ import annotations

import pytest
from golden_files import check_golden

from nsa_dsl.diagnostics import SpecError
from nsa_dsl.loader import load_spec
from nsa_dsl.relation import CAUSAL, Compare, Const, Sum, Var

_TEXT = """relation near(w, d = 1) = dilated(w, d)

pattern p(b = 32, by = mean, cap = 30.0, d = b // 2) {
    overview = attend(compress(block = b, stride = d, by = by), causal, softcap = cap)
    selected = attend(tokens, causal & top(4, block = 32, by = overview, share = group))
    output gate(overview, selected)
}

model m(w = 4) {
    layers w { repeat p, p(by = max) }
}
"""

OVERRIDE_CASES = {
    "not-declared": lambda: load_spec(_TEXT).pattern("q"),
    "unknown-parameter": lambda: load_spec(_TEXT).pattern("p", bb=4),
    "wrong-kind-override": lambda: load_spec(_TEXT).pattern("p", b=0.5, by=3, cap=True),
    "number-too-large-override": lambda: load_spec(_TEXT).pattern("p", b=2**31),
    "not-an-option-override": lambda: load_spec(_TEXT).pattern("p", by="maen"),
    "selection-misaligned-override": lambda: load_spec(_TEXT).pattern("p", d=20),
    "missing-argument-override": lambda: load_spec(_TEXT).relation("near"),
    "wrong-arity-override": lambda: load_spec(_TEXT).relation("near", 4, w=4),
    "too-small-override": lambda: load_spec(_TEXT).relation("window", 0),
}


@pytest.mark.parametrize("name", OVERRIDE_CASES)
def test_the_message_is_the_golden_one(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        OVERRIDE_CASES[name]()
    assert name.startswith(caught.value.diagnostics[0].code)
    check_golden(f"diagnostics/{name}.txt", str(caught.value))


def test_names_are_listed_in_order_without_the_prelude() -> None:
    spec = load_spec(_TEXT)
    assert (spec.relations, spec.patterns, spec.models) == (("near",), ("p",), ("m",))


def test_defaults_follow_overrides() -> None:
    pattern = load_spec(_TEXT).pattern("p", b=16, by="max")
    assert pattern.parameters == (("b", 16), ("by", "max"), ("cap", 30.0), ("d", 8))
    assert (pattern.memories[0].block, pattern.memories[0].stride, pattern.memories[0].by) == (16, 8, "max")


def test_an_integer_is_a_real_number_too() -> None:
    assert load_spec(_TEXT).pattern("p", cap=20).branch("overview").softcap == 20.0


def test_relations_take_arguments_by_place_and_by_name() -> None:
    spec = load_spec(_TEXT)
    assert spec.relation("window", 512).parts[0] == Compare("<", Sum((Var("i"), Const(-512))), Var("j"))
    assert spec.relation("near", 8, d=2) == spec.relation("dilated", w=8, d=2)
    assert spec.relation("causal") == CAUSAL


def test_a_models_parameters_bind() -> None:
    model = load_spec(_TEXT).model("m", w=3)
    assert [each.pattern.memories[0].by for each in model.layers] == ["mean", "max", "mean"]
