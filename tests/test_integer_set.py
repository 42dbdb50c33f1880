"""Integer sets against the meaning of relations, and back; lifts to compressed slots."""

from __future__ import annotations

import islpy as isl
import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from strategies import I, J, minus, plus, relations, window

from nsa_dsl.integer_set import TooComplex, from_set, limited, pair_space, to_affine, to_set
from nsa_dsl.lift import covered_tokens, lift_to_slots
from nsa_dsl.relation import (
    CAUSAL,
    Absolute,
    All,
    Chosen,
    Compare,
    Condition,
    Const,
    Either,
    Extreme,
    FloorDiv,
    Modulo,
    Not,
    SameDocument,
    Scale,
    Sum,
    Truth,
    Var,
    evaluate,
    symbols,
    walk,
)


def dense(relation: Condition, n: int, h: int = 1, keys: int | None = None) -> np.ndarray:
    i, j = np.arange(n)[:, None], np.arange(n if keys is None else keys)[None, :]
    found = evaluate(relation, {"i": i, "j": j, "N": n, "h": h, "heads": 2, "kv_heads": 1, "same_document": True})
    return np.broadcast_to(found, (len(i), j.shape[1])).astype(bool)


@settings(max_examples=100)
@given(relations(), st.integers(1, 12))
def test_members_are_the_allowed_pairs_and_the_way_back_keeps_them(relation, n):
    with limited() as context:
        pairs = to_set(relation, context)
        fixed = f"0 <= i, j < N = {n} and h = 1 and heads = 2 and kv_heads = 1"
        here = isl.Set(f"[N, h, heads, kv_heads] -> {{ [i, j] : {fixed} }}", context=context)
        members = np.zeros((n, n), bool)
        coordinates: list[tuple[int, ...]] = []
        pairs.intersect(here).project_out_all_params().foreach_point(
            lambda point: coordinates.append(tuple(point.get_coordinate_val(isl.dim_type.set, axis).to_python() for axis in (0, 1)))
        )
        for each in coordinates:
            members[each] = True
        back = from_set(pairs)
    np.testing.assert_array_equal(members, dense(relation, n))
    np.testing.assert_array_equal(dense(back, n), dense(relation, n))


KINDS = (Const, Var, Sum, Scale, FloorDiv, Modulo, Extreme, Absolute, Truth, Compare, Not, All, Either, SameDocument)


@pytest.mark.parametrize("kind", KINDS)
def test_random_relations_reach_every_kind_of_node(kind):
    find(relations(), lambda relation: any(isinstance(each, kind) for each in walk(relation)))


@pytest.mark.parametrize("symbol", ["i", "j", "h", "N", "heads"])
def test_random_relations_reach_every_symbol(symbol):
    find(relations(), lambda relation: symbol in symbols(relation))


def test_random_relations_divide_negative_numbers():
    def divides_negative(relation: Condition) -> bool:
        here = {"i": 3, "j": 5, "N": 9, "h": 1, "heads": 2, "kv_heads": 1}
        return any(isinstance(each, FloorDiv | Modulo) and evaluate(each.term, here) < 0 for each in walk(relation))

    find(relations(), divides_negative)


def test_a_tile_is_no_symbol_of_a_relation():
    with limited() as context, pytest.raises(ValueError, match="tile"):
        to_affine(Var("tile"), pair_space(context))


def test_a_choice_is_no_set():
    with limited() as context, pytest.raises(ValueError, match="selected"):
        to_set(Chosen("selected"), context)


def test_the_limit_of_operations_holds():
    with pytest.raises(TooComplex), limited(20) as context:
        to_set(window(512), context).complement().coalesce()


def test_errors_of_other_kinds_pass_the_limit():
    with pytest.raises(isl.Error), limited() as context:
        isl.Set("not a set", context=context)


def check_lift(relation: Condition, lifted: Condition, n: int, block: int, stride: int) -> None:
    slots = max(0, (n - block) // stride + 1)
    tokens = dense(relation, n)
    wanted = np.stack([tokens[:, t * stride : t * stride + block].all(axis=1) for t in range(slots)], axis=1) if slots else tokens[:, :0]
    np.testing.assert_array_equal(dense(lifted, n, keys=slots), wanted)


@settings(max_examples=80)
@given(relations(), st.integers(1, 6), st.integers(1, 6), st.integers(1, 24))
def test_a_slot_is_visible_when_every_token_it_covers_is(relation, block, stride, n):
    check_lift(relation, lift_to_slots(relation, block, stride), n, block, stride)


def test_causal_waits_for_the_end_of_a_slot():
    assert lift_to_slots(CAUSAL, 32, 16) == Compare("<=", plus(Scale(16, J), 31), I)
    with pytest.raises(AssertionError):
        check_lift(CAUSAL, Compare("<=", Scale(4, J), I), 30, 8, 4)


def test_a_lift_keeps_the_document_it_intersects_with():
    assert lift_to_slots(All((CAUSAL, SameDocument())), 8, 8) == All((Compare("<=", plus(Scale(8, J), 7), I), SameDocument()))
    with pytest.raises(ValueError, match="document"):
        lift_to_slots(Either((CAUSAL, SameDocument())), 8, 8)


def test_a_lift_without_isl_is_the_same(monkeypatch):
    monkeypatch.setattr("nsa_dsl.integer_set.limited.__wrapped__.__defaults__", (5,))
    relation = Compare("==", Modulo(FloorDiv(minus(I, J), 4), 2), Const(0))
    check_lift(relation, lift_to_slots(relation, 3, 2), 20, 3, 2)


def test_slots_cover_their_tokens():
    tokens = covered_tokens(lift_to_slots(CAUSAL, 4, 2), 4, 2)
    n = 17
    wanted = np.zeros((n, n), bool)
    for i in range(n):
        for t in range((n - 4) // 2 + 1):
            if t * 2 + 3 <= i:
                wanted[i, t * 2 : t * 2 + 4] = True
    np.testing.assert_array_equal(dense(tokens, n), wanted)
