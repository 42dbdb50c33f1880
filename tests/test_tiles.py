"""Loops over tiles against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import H, I, J, N, minus, neighbourhood, plus, powers, relations, window

from nsa_dsl import tiles
from nsa_dsl.count import count_pairs
from nsa_dsl.enumeration import enumerate_tiles
from nsa_dsl.relation import (
    CAUSAL,
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
    Var,
    evaluate,
)
from nsa_dsl.tiles import Piece, Tiling, tiling


def marked(pieces: tuple[Piece, ...], kinds: npt.NDArray[np.int8], environment: dict[str, int]) -> npt.NDArray[np.int8]:
    """The tiles the pieces visit: rows are outer tiles. Raises AssertionError when a tile is visited twice or does not exist."""
    found = np.zeros_like(kinds)
    for tile in range(kinds.shape[0]):
        here = {**environment, "tile": tile}
        for piece in pieces:
            if piece.guard is not None and not evaluate(piece.guard, here):
                continue
            for t in range(evaluate(piece.low, here), evaluate(piece.high, here), piece.step):
                if piece.inner is None or evaluate(piece.inner, {**here, "j": t}):
                    assert 0 <= t < kinds.shape[1], (piece, tile, t)
                    assert found[tile, t] == 0, (piece, tile, t)
                    found[tile, t] = 2 if piece.full else 1
    return found


def check(relation: Condition, rows: int, cols: int, lengths: tuple[int, ...]) -> tuple[Tiling, Tiling]:
    by_keys, by_queries = tiling(relation, rows, cols), tiling(relation, rows, cols, over="queries")
    for n in lengths:
        for h in range(2):
            kinds = enumerate_tiles(relation, rows, cols, n, h, 2)
            environment = {"N": n, "h": h, "heads": 2, "kv_heads": 1, "same_document": 1}
            for found, wanted, exact in (
                (marked(by_keys.pieces, kinds, environment), kinds, by_keys.exact),
                (marked(by_queries.pieces, kinds.T, environment), kinds.T, by_queries.exact),
            ):
                if exact:
                    np.testing.assert_array_equal(found > 0, wanted > 0)
                    assert not ((found == 2) & (wanted < 2)).any()
                else:
                    assert (found == 1).all()
    return by_keys, by_queries


@settings(max_examples=150)
@given(relations(), st.integers(1, 9), st.integers(1, 9), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_pieces_are_the_tiles_with_an_allowed_pair(relation, rows, cols, lengths):
    check(relation, rows, cols, lengths)


USUAL = {
    "causal": CAUSAL,
    "window": window(12),
    "window and first": All((CAUSAL, Either((window(12), Compare("<", J, Const(2)))))),
    "prefix": Either((CAUSAL, Compare("<", J, Const(10)))),
    "blocks": Compare("==", FloorDiv(I, 8), FloorDiv(J, 8)),
    "strided": All((CAUSAL, Either((window(8), Compare("==", Modulo(minus(I, J), 16), Const(0)))))),
    "sharded": All((CAUSAL, Either((window(16), Compare("==", Modulo(plus(FloorDiv(J, 4), H), 4), Const(0)))))),
    "powers": All((CAUSAL, powers(4, 2, 6))),
    "neighbourhood": neighbourhood(8, 8, 3, 3),
}


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize(("rows", "cols"), [(8, 4), (4, 8), (1, 1), (6, 5)])
def test_usual_relations_are_exact_and_short(name, rows, cols):
    by_keys, by_queries = check(USUAL[name], rows, cols, (1, 7, 16, 41, 64))
    if (name, rows) != ("neighbourhood", 6):  # tiles that are no whole rows of the grid may take the fall-back
        assert by_keys.exact
        assert by_queries.exact
    assert max(len(by_keys.pieces), len(by_queries.pieces)) <= 8


@pytest.mark.parametrize("name", ["causal", "window", "window and first", "prefix", "strided", "sharded", "powers"])
def test_full_tiles_pay_no_mask(name):
    kinds = enumerate_tiles(USUAL[name], 8, 4, 64, 1, 2)
    found = marked(tiling(USUAL[name], 8, 4).pieces, kinds, {"N": 64, "h": 1, "heads": 2, "kv_heads": 1, "same_document": 1})
    np.testing.assert_array_equal(found, kinds)


@pytest.mark.parametrize(("rows", "cols", "block"), [(8, 4, 8), (8, 4, 4), (8, 8, 8), (4, 4, 4), (8, 2, 8)])
def test_scattered_blocks_are_stepped_to(rows, cols, block):
    """Every tenth block, in each row of blocks another: no tile between them is visited, nor asked about."""
    scattered = Compare("==", Modulo(plus(FloorDiv(J, block), Scale(3, FloorDiv(I, block))), 10), Const(0))
    by_keys, _ = check(scattered, rows, cols, (1, 7, 40, 83, 200))
    assert by_keys.exact
    assert all(piece.inner is None for piece in by_keys.pieces)


def test_causal_is_two_loops():
    tile, n = Var("tile"), Var("N")
    last = Extreme("min", (plus(Scale(2, tile), 1), FloorDiv(plus(n, -1), 64)))
    assert tiling(CAUSAL, 128, 64).pieces == (
        Piece(Const(0), Scale(2, tile), 1, True),
        Piece(Scale(2, tile), plus(last, 1), 1, False),
    )


def test_slots_end_at_the_last_whole_block():
    slots = Compare("<=", plus(Scale(4, J), 7), I)
    keys = plus(FloorDiv(plus(N, -8), 4), 1)
    pieces = tiling(slots, 8, 4, keys=keys).pieces
    for n in (1, 7, 8, 9, 33, 50):
        kinds = enumerate_tiles(slots, 8, 4, n, 0, keys=keys)
        found = marked(pieces, kinds, {"N": n, "h": 0, "heads": 1, "kv_heads": 1})
        np.testing.assert_array_equal(found, kinds)


def test_a_negated_document_is_visited_but_never_full():
    pieces = tiling(Not(SameDocument()), 4, 4).pieces
    assert pieces
    assert not any(piece.full for piece in pieces)


def test_a_choice_is_refused():
    with pytest.raises(ValueError, match="selected"):
        tiling(Chosen("selected"), 4, 4)


def test_loops_that_miss_a_tile_are_refused(monkeypatch):
    """Here the last tile of every loop is forgotten: no way is left, and every tile is visited."""
    whole = tiles._walk

    def walk(*arguments):
        return [replace(piece, high=plus(piece.high, -1)) for piece in whole(*arguments)]

    monkeypatch.setattr(tiles, "_walk", walk)
    assert not tiling.__wrapped__(CAUSAL, 8, 4).exact


def test_what_isl_cannot_do_visits_every_tile(monkeypatch):
    monkeypatch.setattr("nsa_dsl.integer_set.limited.__wrapped__.__defaults__", (50,))
    found = tiling(CAUSAL, 4, 4)
    assert found == Tiling((Piece(Const(0), Extreme("max", (Const(0), FloorDiv(plus(N, 3), 4))), 1, False),), False)


@pytest.mark.parametrize(("right", "wrong"), [(CAUSAL, Compare("<", J, I)), (window(13), window(14))])
def test_the_check_sees_what_is_off_by_one(right, wrong):
    kinds = enumerate_tiles(right, 4, 4, 29, 0)
    found = marked(tiling(wrong, 4, 4).pieces, kinds, {"N": 29, "h": 0, "heads": 1, "kv_heads": 1})
    assert not np.array_equal(found, kinds)


@settings(max_examples=60)
@given(relations(), st.integers(1, 40))
def test_counts_are_those_of_brute_force(relation, n):
    i, j = np.arange(n)[:, None], np.arange(n)[None, :]
    environment = {"i": i, "j": j, "N": n, "heads": 2, "kv_heads": 1, "same_document": True}
    dense = [np.broadcast_to(evaluate(relation, {**environment, "h": h}), (n, n)) for h in range(2)]
    assert count_pairs(relation, n, heads=2) == sum(int(each.sum()) for each in dense)


def test_a_long_sequence_is_counted_without_visiting_its_pairs():
    n = 65_536
    assert count_pairs(CAUSAL, n) == n * (n + 1) // 2
    assert count_pairs(window(512), n) == 512 * n - 512 * 511 // 2
