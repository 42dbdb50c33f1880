"""Conditions and terms: what resolution folds away changes nothing, held to the same expression computed directly."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_dsl.diagnostics import SpecError
from nsa_dsl.loader import load_spec
from nsa_dsl.relation import CAUSAL, EMPTY, FULL, Compare, Condition, Const, FloorDiv, Not, Scale, Sum, Var, allows, disjunction
from nsa_dsl.resolve import terms

Written = tuple[str, Callable[[int, int, int, int], int]]
"""An expression's text, and its value at (i, j, h, N)."""

_I, _J = Var("i"), Var("j")


def _constants() -> st.SearchStrategy[Written]:
    return st.integers(-6, 6).map(lambda value: (f"({value})", lambda *_: value))


def _symbols() -> st.SearchStrategy[Written]:
    return st.sampled_from([(name, itemgetter(place)) for place, name in enumerate("ijhN")]).map(
        lambda symbol: (symbol[0], lambda *at: symbol[1](at))
    )


def _larger(parts: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    def add(a: Written, b: Written) -> Written:
        return f"({a[0]} + {b[0]})", lambda *at: a[1](*at) + b[1](*at)

    def subtract(a: Written, b: Written) -> Written:
        return f"({a[0]} - {b[0]})", lambda *at: a[1](*at) - b[1](*at)

    def scale(a: Written, factor: int) -> Written:
        return f"({factor} * {a[0]})" if factor % 2 else f"({a[0]} * ({factor}))", lambda *at: factor * a[1](*at)

    def divide(a: Written, divisor: int) -> Written:
        return f"({a[0]} // {divisor})", lambda *at: a[1](*at) // divisor

    def modulo(a: Written, divisor: int) -> Written:
        return f"({a[0]} % {divisor})", lambda *at: a[1](*at) % divisor

    def least(a: Written, b: Written, c: Written) -> Written:
        return f"min({a[0]}, {b[0]}, {c[0]})", lambda *at: min(a[1](*at), b[1](*at), c[1](*at))

    def clamp(a: Written, b: Written, c: Written) -> Written:
        return f"clamp({a[0]}, {b[0]}, {c[0]})", lambda *at: max(b[1](*at), min(a[1](*at), c[1](*at)))

    def absolute(a: Written) -> Written:
        return f"abs(-{a[0]})", lambda *at: abs(a[1](*at))

    def power(base: int, exponent: int) -> Written:
        return f"({base}) ** {exponent}", lambda *_: base**exponent

    return st.one_of(
        st.builds(add, parts, parts),
        st.builds(subtract, parts, parts),
        st.builds(scale, parts, st.integers(-4, 4)),
        st.builds(divide, parts, st.integers(1, 5)),
        st.builds(modulo, parts, st.integers(1, 5)),
        st.builds(least, parts, parts, parts),
        st.builds(clamp, parts, parts, parts),
        st.builds(absolute, parts),
        st.builds(power, st.integers(-3, 3), st.integers(0, 5)),
    )


_TERMS = st.recursive(_constants() | _symbols(), _larger, max_leaves=8)


def _compared(a: Written, op: str, b: Written, op2: str, c: Written) -> Written:
    tests = {"<": int.__lt__, "<=": int.__le__, ">": int.__gt__, ">=": int.__ge__, "==": int.__eq__, "!=": int.__ne__}
    return (
        f"{a[0]} {op} {b[0]} {op2} {c[0]}",
        lambda *at: tests[op](a[1](*at), b[1](*at)) and tests[op2](b[1](*at), c[1](*at)),
    )


_OPS = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
_CONDITIONS = st.builds(_compared, _TERMS, _OPS, _TERMS, _OPS, _TERMS)


@settings(max_examples=300, deadline=None)
@given(first=_CONDITIONS, second=_CONDITIONS, third=_CONDITIONS)
def test_a_condition_means_what_it_says(first: Written, second: Written, third: Written) -> None:
    text = f"relation r = {{ i, j, h : {first[0]} and not ({second[0]}) or {third[0]} }}\n"
    relation = load_spec(text).relation("r")
    for i in range(0, 6, 2):
        for j in range(6):
            at = (i, j, 1, 6)
            assert allows(relation, *at) == bool((first[1](*at) and not second[1](*at)) or third[1](*at)), at


def _resolved(relation: str, before: str = "") -> Condition:
    return load_spec(f"{before}relation r = {relation}\n").relation("r")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{ i, j : j <= i }", CAUSAL),
        ("{ q, k : k <= q }", CAUSAL),
        ("{ i, j : i - 512 < j }", Compare("<", Sum((_I, Const(-512))), _J)),
        ("{ i, j : i + j - i + 3 - 3 <= i }", CAUSAL),
        ("{ i, j : 2 * (i - j) + j < 4 }", Compare("<", Sum((Scale(2, _I), Scale(-1, _J))), Const(4))),
        ("{ i, j : i // 1 // 4 == (3 + 1) // 2 }", Compare("==", FloorDiv(_I, 4), Const(2))),
        ("{ i, j : i % 1 < 1 }", FULL),
        ("{ i, j : i < i }", EMPTY),
        ("{ i, j : -1 // 2 == -1 and -1 % 3 == 2 }", FULL),
        ("{ i, j : not i < j }", Not(Compare("<", _I, _J))),
        ("causal & causal", CAUSAL),
        ("causal | full", FULL),
        ("causal - full", EMPTY),
        ("full - causal", Not(CAUSAL)),
        ("causal | first(3) - causal", _resolved("(causal | first(3)) - causal")),
        ("causal & first(3) | window(2)", _resolved("(causal & first(3)) | window(2)")),
        ("union p in 2..2 first(p + 1)", EMPTY),
        ("union p in 0..3 { i, j : i - j == 2 ** p }", disjunction(*(_resolved(f"{{ i, j : i - j == {2**p} }}") for p in range(3)))),
    ],
)
def test_relations_stay_small(text: str, wanted: Condition) -> None:
    assert _resolved(text) == wanted


def test_relations_call_relations_with_parameters() -> None:
    before = "relation near(w, d = 2 * w) = dilated(w, d) | later(d)\nrelation later(n) = { i, j : j >= i + n }\n"
    assert _resolved("near(3)", before) == _resolved("dilated(3, 6) | { i, j : j >= i + 6 }")


def test_a_unions_variable_counts_in_nested_calls() -> None:
    assert _resolved("union p in 1..3 union q in p..3 first(p * q)") == _resolved("first(1) | first(2) | first(4)")


def test_head_and_run_time_symbols() -> None:
    relation = _resolved("{ i, j, h : j >= N - heads + h * 2 }")
    assert [allows(relation, 0, j, 1, 8, 4, 2) for j in range(8)] == [j >= 8 - 4 + 2 for j in range(8)]


@pytest.mark.parametrize("make", [lambda: terms.constant(2**31), lambda: terms.add(Const(2**31 - 1), Const(1))])
def test_constants_stay_in_32_bits(make: Callable[[], object]) -> None:
    with pytest.raises(OverflowError):
        make()


@pytest.mark.parametrize("text", ["65536 * 32768", "2 ** 31", "-(2 ** 31 - 1) - 1", "70000 * (70000 * i)", "2 ** 999999999", "9 ** 31"])
def test_no_constant_leaves_32_bits(text: str) -> None:
    with pytest.raises(SpecError, match="number-too-large"):
        _resolved(f"{{ i, j : j < {text} }}")


def test_the_greatest_constant_is_legal() -> None:
    assert _resolved("{ i, j : j - i < 2 ** 30 + (2 ** 30 - 1) }").right == Const(2**31 - 1)
