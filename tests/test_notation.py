"""Relations printed in the language's notation, which Python reads the same way."""

from __future__ import annotations

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from nsa_dsl.notation import format_condition, format_term
from nsa_dsl.relation import (
    EMPTY,
    FULL,
    Chosen,
    Compare,
    Condition,
    Const,
    Either,
    FloorDiv,
    Modulo,
    Not,
    SameDocument,
    Scale,
    Sum,
    Term,
    conjunction,
    evaluate,
)

POSITIONS = st.integers(-30, 30)


@given(strategies.relations(), POSITIONS, POSITIONS, st.booleans())
def test_text_means_what_the_condition_means(condition: Condition, i: int, j: int, same: bool) -> None:
    names = {"i": i, "j": j, "h": 3, "N": 40, "heads": 4, "kv_heads": 2}
    text = eval(format_condition(condition), {"full": True, "empty": False, "document": same, **names})
    assert text == bool(evaluate(condition, names | {"same_document": same}))


@given(strategies.terms(4), POSITIONS, POSITIONS)
def test_text_means_what_the_term_means(term: Term, i: int, j: int) -> None:
    names = {"i": i, "j": j, "h": 3, "N": 40, "heads": 4, "kv_heads": 2}
    assert eval(format_term(term), dict(names)) == evaluate(term, names)


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (FULL, "full"),
        (EMPTY, "empty"),
        (strategies.window(512), "i - 512 < j and j <= i"),
        (Compare("==", Sum((FloorDiv(strategies.I, 64), Scale(-1, FloorDiv(strategies.J, 64)))), Const(0)), "i // 64 - j // 64 == 0"),
        (Compare("==", Modulo(Sum((strategies.I, Scale(-1, strategies.J))), 4), Const(0)), "(i - j) % 4 == 0"),
        (Compare("<=", Sum((Scale(16, strategies.J), Const(31))), strategies.I), "16 * j + 31 <= i"),
        (Compare("<", Scale(-1, FloorDiv(strategies.I, 2)), FloorDiv(Const(-3), 2)), "-(i // 2) < (-3) // 2"),
        (Compare("<", Scale(2, Scale(-3, strategies.I)), Scale(2, FloorDiv(strategies.J, 2))), "2 * (-3 * i) < 2 * (j // 2)"),
        (conjunction(Either((Chosen("near"), Not(Chosen("far")))), SameDocument()), "(near or not far) and document"),
        (Not(Compare("<", strategies.I, strategies.J)), "not i < j"),
        (Not(Either((Compare("<", strategies.I, strategies.J), SameDocument()))), "not (i < j or document)"),
    ],
)
def test_examples(condition: Condition, text: str) -> None:
    assert format_condition(condition) == text
