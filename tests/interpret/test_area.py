"""Blocks that the usual tiles do not fit: which sizes the schedule takes instead, and that results and gradients are right with them."""

from __future__ import annotations

import pytest
from interpret.support import agree, agree_in_gradients, parse

from nsa_dsl import schedule_area
from nsa_dsl.launch import LaunchShape, Pin, Tiles
from nsa_dsl.relation import Compare, Const, Var, conjunction
from nsa_dsl.schedule_area import clearly_less
from nsa_dsl.work import Call, Kernel, kernels

BLOCKS = "output attend(tokens, {{ i, j : (j // {0} + 3 * (i // {0})) % {1} == 0 }})"
SHAPE = LaunchShape(templates="portable")
CALL = Call(4096, 4, 2)


def planned(text: str, shape: LaunchShape = SHAPE) -> dict[str, Kernel]:
    """The kernels of `text`, by what they make."""
    found = kernels(parse(text), shape, CALL)
    return {name.removeprefix("attend_output").removeprefix("_") or "out": each for name, each in found.items()}


def sizes(text: str, shape: LaunchShape = SHAPE) -> dict[str, tuple[int, int]]:
    return {name: (each.tiles.rows, each.tiles.cols) for name, each in planned(text, shape).items()}


USUAL = {"out": (128, 64), "queries": (128, 64), "keys": (32, 128)}


def test_blocks_of_64_are_walked_in_full_tiles() -> None:
    text = BLOCKS.format(64, 10)
    assert sizes(text) == {"out": (64, 64), "queries": (64, 64), "keys": (32, 64)}
    for each in planned(text).values():
        work = each.work()
        assert int(work.full.sum()) > 0
        assert int(work.partial.sum()) == 0


MOSTLY_FULL = "output attend(tokens, { i, j : (i // 64) % 2 == 0 or (j % 64 < 32 and (j // 64) % 3 != 0) })"
"""No tile of 128 rows is full and most visited ones of 64 are, but they hold 5 / 6 of the area."""


@pytest.mark.parametrize(
    "text",
    [
        BLOCKS.format(128, 10),
        BLOCKS.format(32, 10),
        "output attend(tokens, { i, j : (j // 64 + 3 * (i // 64)) % 10 == 0 or j < 256 })",
        MOSTLY_FULL,
        *(f"output attend(tokens, {each})" for each in ("causal", "window(1024)")),
    ],
    ids=["fitting", "no_tile_full", "some_usual_full", "little_gained", "causal", "window"],
)
def test_what_smaller_tiles_would_not_help_keeps_the_usual_ones(text: str) -> None:
    assert sizes(text) == USUAL


def test_sizes_are_compared_from_either_side() -> None:
    (branch,) = parse(BLOCKS.format(64, 10)).branches
    assert clearly_less((128, 128), (64, 64), branch.where, Var("N"))
    assert clearly_less((32, 128), (32, 64), branch.where, Var("N"), "queries")


def test_nothing_is_counted_where_it_cannot_help_or_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    (branch,) = parse(BLOCKS.format(64, 10)).branches
    monkeypatch.delattr(schedule_area, "count_tiles")
    for smaller in ((128, 128), (64, 64)):
        assert not clearly_less((64, 64), smaller, branch.where, Var("N"))
    bounds = (Compare("<=", Var("j"), Const(2**40 + each)) for each in range(schedule_area.MOST_NODES // 3))
    assert not clearly_less((128, 128), (64, 64), conjunction(branch.where, *bounds), Var("N"))


def test_counts_of_every_tile_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What isl gives up on visits every tile: more with the usual sizes, perhaps, but for no reason in the relation."""
    (branch,) = parse(BLOCKS.format(64, 10)).branches
    count = schedule_area.count_tiles
    monkeypatch.setattr(schedule_area, "count_tiles", lambda *arguments: (*count(*arguments)[:2], False))
    assert not clearly_less((128, 128), (64, 64), branch.where, Var("N"))


def test_sizes_that_somebody_decided_win() -> None:
    text = BLOCKS.format(64, 10)
    assert set(sizes(text, LaunchShape(rows=32, cols=32)).values()) == {(32, 32)}
    pins = tuple((name, Pin(Tiles(128, 32, 8, 2))) for name in ("attend_output", "attend_output_queries", "attend_output_keys"))
    assert set(sizes(text, LaunchShape(templates="portable", pins=pins)).values()) == {(128, 32)}


def test_results_and_gradients_with_the_smaller_tiles() -> None:
    """In fp16, as the schedule has it: a length that ends inside a block."""
    own = {"rows": None, "cols": None, "dtype": "fp16", "heads": 2, "kv_heads": 1, "tokens": 331, "d_v": 16}
    text = BLOCKS.format(64, 4)
    assert sizes(text, LaunchShape(16, 16, "fp16", "interpreter")) == {"out": (64, 64), "queries": (64, 64), "keys": (32, 64)}
    agree(text, **own)
    agree_in_gradients(text, **own)
