"""The example specs as texts: formatted, resolved, and with assertions that hold at small sizes by enumeration."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from itertools import groupby
from pathlib import Path
from pprint import pformat

import numpy as np
import pytest
from golden_files import check_golden

from nsa_dsl.loader import load_spec
from nsa_dsl.notation import format_condition
from nsa_dsl.parser import parse
from nsa_dsl.pattern import Bound, Claim, Layer, Pattern, Reach, Within
from nsa_dsl.printer import format_spec
from nsa_dsl.relation import FULL, Chosen, Condition, allows, choices, evaluate, rewrite
from nsa_dsl.resolve import Spec

_ROOT = Path(__file__).parent.parent
_EXAMPLES = sorted((_ROOT / "examples").glob("*.nsa"))
_NAMES = [each.stem for each in _EXAMPLES]
_HEADS = 3

_SMALL: dict[str, dict[str, int]] = {
    "nsa": {"l": 4, "d": 2, "b": 4, "n": 4, "w": 5},
    "local": {"w": 5},
    "global": {"b": 2, "n": 4},
    "sliding_window": {"w": 5},
    "streaming": {"sinks": 2, "w": 5},
    "bigbird": {"b": 2, "g": 1, "r": 1, "m": 7},
    "longformer": {"l": 3, "d": 2, "n": 1, "g": 1},
    "strided": {"l": 4},
    "fixed": {"l": 4, "c": 1},
    "longnet": {"w": 3},
    "dilated": {"w": 3, "d": 3},
    "prefix_lm": {"n": 6},
    "power_attention": {"b": 2, "w": 2},
    "s2": {"b": 1, "s": 3},
    "neighborhood": {"H": 4, "W": 6, "k": 3},
    "moba": {"b": 4, "n": 2},
}
_TOKENS = 24
_SQUARE = [(i, j) for i in range(_TOKENS) for j in range(_TOKENS)]


def _spec(name: str) -> Spec:
    return load_spec(_ROOT / "examples" / f"{name}.nsa")


def test_all_examples_are_there() -> None:
    wanted = {
        "nsa", "asa", "causal", "sliding_window", "streaming", "bigbird", "longformer", "strided", "dilated", "prefix_lm",
        "power_attention", "s2", "neighborhood", "moba", "gemma",
    }  # fmt: skip
    assert wanted <= set(_NAMES)


@pytest.mark.parametrize("path", [*_EXAMPLES, _ROOT / "grammar" / "prelude.nsa"], ids=lambda path: path.stem)
def test_each_text_is_formatted(path: Path) -> None:
    text = path.read_text(encoding="ascii")
    assert format_spec(parse(text, path.name)) == text


@pytest.mark.parametrize("path", _EXAMPLES, ids=lambda path: path.stem)
def test_each_text_says_where_it_comes_from(path: Path) -> None:
    text = path.read_text(encoding="ascii")
    assert "arXiv" in text.partition("pattern")[0]
    assert "assert " in text


def _readable(value: object) -> object:
    """A value of `nsa_dsl.pattern` as plain data, relations in the language's notation, defaults left out."""
    if isinstance(value, Condition):
        return format_condition(value)
    if isinstance(value, tuple):
        return [_readable(each) for each in value]
    if not is_dataclass(value):
        return value
    kept = {each.name: getattr(value, each.name) for each in fields(value) if each.name != "text"}
    return {"is": type(value).__name__, **{name: _readable(each) for name, each in kept.items() if each not in (None, (), False)}}


def _layer(layer: Layer) -> str:
    parameters = ", ".join(f"{key} = {value}" for key, value in layer.pattern.parameters)
    reuse = "".join(f" reuse {name} of layer {source}" for name, source in layer.reuse)
    return f"{layer.pattern.name}({parameters}){reuse}"


@pytest.mark.parametrize("name", _NAMES)
def test_each_resolves_to_its_golden(name: str) -> None:
    spec = _spec(name)
    parts = [pformat(_readable(spec.pattern(each)), width=120, sort_dicts=False) for each in spec.patterns]
    for each in spec.models:
        model = spec.model(each)
        runs = [(layer, len(list(group))) for layer, group in groupby(model.layers, key=_layer)]
        parts.append("\n".join([f"model {each}", *(f"    {count} x {layer}" for layer, count in runs), pformat(_readable(model.claims))]))
    check_golden(f"resolved/{name}.txt", "\n\n".join(parts))


def _may(pattern: Pattern) -> set[tuple[int, int]]:
    """Every pair that some head of some branch could see, whatever is chosen; slots as if their tokens were seen one by one."""
    pairs: set[tuple[int, int]] = set()
    for branch in pattern.outputs:
        where = rewrite(branch.where, {}, {Chosen(each): FULL for each in choices(branch.where)})
        pairs |= {(i, j) for i, j in _SQUARE if any(allows(where, i, j, h, _TOKENS, _HEADS, _HEADS) for h in range(_HEADS))}
    return pairs


def _meant(relation: Condition) -> set[tuple[int, int]]:
    return {(i, j) for i, j in _SQUARE if allows(relation, i, j, 0, _TOKENS)}


def _reached(layers: list[set[tuple[int, int]]]) -> set[tuple[int, int]]:
    """What flows from j to i through the layers and the residual stream."""
    reached = {(i, i) for i in range(_TOKENS)}
    for pairs in layers:
        reached |= {(i, j) for i, k in pairs for j in range(_TOKENS) if (k, j) in reached}
    return reached


def _check_claims(claims: tuple[Claim, ...], layers: list[set[tuple[int, int]]]) -> None:
    bounds = [_meant(each.relation) for each in claims if isinstance(each, Within)]
    for claim in claims:
        match claim:
            case Within(relation):
                assert all(pairs <= _meant(relation) for pairs in layers), claim.text
            case Reach(relation, depth):
                assert set.intersection(_meant(relation), *bounds) <= _reached(layers[:depth]), claim.text
            case Bound():
                pass


@pytest.mark.parametrize("name", _NAMES)
def test_assertions_hold_at_small_sizes(name: str) -> None:
    spec = _spec(name)
    small = {each: spec.pattern(each, **(_SMALL.get(each, {}) if spec.pattern(each).parameters else {})) for each in spec.patterns}
    seen = {each: _may(pattern) for each, pattern in small.items()}
    for each, pattern in small.items():
        depth = max([1, *(claim.layers for claim in pattern.claims if isinstance(claim, Reach))])
        _check_claims(pattern.claims, [seen[each]] * depth)
    for each in spec.models:
        model = spec.model(each)
        _check_claims(model.claims, [seen[layer.pattern.name] for layer in model.layers[:8]])


@pytest.mark.parametrize("name", _NAMES)
def test_densities_hold_on_sampled_rows(name: str) -> None:
    spec = _spec(name)
    for pattern in (spec.pattern(each) for each in spec.patterns):
        for claim in pattern.claims:
            if isinstance(claim, Bound):
                assert claim.quantity == "density"
                assert _sampled_density(pattern, claim.length) <= claim.bound, claim.text


def _sampled_density(pattern: Pattern, length: int) -> float:
    """Visible pairs of about 300 rows, among all pairs of those rows, averaged over 4 heads."""
    rows = np.arange(0, length, max(1, length // 300) | 1)
    keys = np.arange(length)
    total = 0
    for row in rows:
        for h in range(4):
            values = {"i": row, "j": keys, "h": h, "N": length, "heads": 4, "kv_heads": 4}
            total += int(np.count_nonzero(np.broadcast_to(evaluate(pattern.outputs[0].where, values), keys.shape)))
    return total / (4 * len(rows) * length)
