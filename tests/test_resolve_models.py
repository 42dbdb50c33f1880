"""Models: how schedules fill layers, and which choices are reused from where."""

from __future__ import annotations

import pytest

from nsa_dsl.diagnostics import SpecError
from nsa_dsl.loader import load_spec
from nsa_dsl.pattern import Model, Reach, Within
from nsa_dsl.relation import CAUSAL, FULL

_PATTERNS = """pattern a(w = 4) { output attend(tokens, window(w)) }
pattern b { output attend(tokens, causal) }
pattern c(n = 2) {
    chosen = attend(tokens, causal & top(n, block = 4, by = scores, share = all))
    output chosen
}
"""


def _model(body: str, parameters: str = "", **overrides: int) -> Model:
    return load_spec(f"{_PATTERNS}model m({parameters}) {{ {body} }}\n").model("m", **overrides)


def _names(model: Model) -> str:
    return "".join(each.pattern.name for each in model.layers)


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        ("layers 6 { repeat a, b }", "ababab"),
        ("layers 7 { repeat a * 2, b }", "aabaaba"),
        ("layers 3 { repeat a * 5, b }", "aaa"),
        ("layers 6 { 0..2: b rest: a }", "bbaaaa"),
        ("layers 6 { 5: b rest: a }", "aaaaab"),
        ("layers 6 { rest: a 2: b }", "aabaaa"),
        ("layers 6 { 2: c repeat a, b }", "abcaba"),
        ("layers 4 { 0..2: a 2..4: b }", "aabb"),
        ("layers 2 { 0..2: a rest: b }", "aa"),
        ("layers 4096 { repeat b }", "b" * 4096),
    ],
)
def test_schedules(layers: str, wanted: str) -> None:
    assert _names(_model(layers)) == wanted


def test_parameters_reach_counts_ranges_and_patterns() -> None:
    model = _model("layers n { 0..n // 2: a(w = 2 * n) repeat b * k, a }", "n = 8, k = 1", k=2)
    assert _names(model) == "aaaabbab"
    assert [each.pattern.parameters for each in model.layers if each.pattern.name == "a"] == [(("w", 16),)] * 4 + [(("w", 4),)]
    assert model.parameters == (("n", 8), ("k", 2))


def test_equal_layers_share_one_pattern() -> None:
    layers = _model("layers 4 { 0: a 1: a(w = 4) 2: a(4) 3: a(5) }").layers
    assert layers[0].pattern is layers[1].pattern is layers[2].pattern
    assert layers[3].pattern is not layers[0].pattern


def test_reuse_takes_the_last_layer_that_chose() -> None:
    model = _model("layers 8 { repeat c, a, c * 2 reuse(chosen) }")
    assert [dict(each.reuse).get("chosen") for each in model.layers] == [None, None, 0, 0, None, None, 4, 4]


def test_reuse_may_change_what_the_choice_does_not_depend_on() -> None:
    assert _model("layers 2 { 0: c(n = 8) 1: c reuse(chosen) }").layers[1].reuse == (("chosen", 0),)


def test_claims() -> None:
    model = _model("layers 2 { repeat a, b } assert causal assert reach full within 2")
    assert model.claims == (Within(CAUSAL, "assert causal"), Reach(FULL, 2, "assert reach full within 2"))


@pytest.mark.parametrize("count", [1, 4096])
def test_the_limits_themselves_are_legal(count: int) -> None:
    assert len(_model(f"layers {count} {{ repeat a }}").layers) == count


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("layers 4_097 { repeat a }", "bad-layer-count"),
        ("layers 0 - 1 { repeat a }", "bad-layer-count"),
        ("layers 4 { repeat a * 5_000 }", "bad-layer-count"),
        ("layers 4 { repeat a * 0 }", "too-small"),
        ("layers 4 { 2..2: a rest: b }", "bad-range"),
        ("layers 4 { 4: a rest: b }", "layer-out-of-range"),
        ("layers 4 { 0..2_000_000_000: a }", "layer-out-of-range"),
        ("layers 0 { 0..2_000_000_000: a }", "bad-layer-count"),
        ("layers 4 { }", "uncovered-layers"),
        ("layers 4 { rest: a rest: b }", "overlapping-layers"),
        ("layers 4 { 1: a 1: b rest: c }", "overlapping-layers"),
        ("layers 4 { repeat a reuse(chosen) }", "unknown-name"),
        ("layers 4 { 0..2: a 2: c reuse(chosen) rest: c }", "nothing-to-reuse"),
    ],
)
def test_refusals(body: str, code: str) -> None:
    with pytest.raises(SpecError) as caught:
        _model(body)
    assert [each.code for each in caught.value.diagnostics] == [code]
