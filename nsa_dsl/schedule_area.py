"""Which of two tile sizes a static relation is walked with: decided by the area that each visits, counted exactly."""

from __future__ import annotations

from typing import TypeAlias

from nsa_dsl.count import count_tiles
from nsa_dsl.launch import Tiles
from nsa_dsl.relation import Condition, Term, walk
from nsa_dsl.tiles import Side

Size: TypeAlias = tuple[int, int]
"""rows, cols: query positions by key positions."""

LEAST_GAIN = 1.5
"""As many times the area of the smaller tiles must the usual ones visit. A pair of the smaller ones costs more, since an operand that is
loaded serves half as many rows. Blocks of 64, in every row of blocks others, are twice the area in 128 x 64 tiles, all of it masked: on an
H100 their gradients at 32,768 tokens went from 36.4 to 15.6 ms."""

LONG = 32768
"""Tokens for which tiles are counted: diagonals and edges weigh little there."""

MOST_NODES = 40
"""Longer conditions keep the usual tiles: isl takes seconds for each size."""

_HEADS, _KV_HEADS = 4, 2


def least_area(usual: Tiles, smaller: Tiles, relation: Condition, keys: Term, over: Side = "keys") -> Tiles:
    """`smaller` if it visits clearly less of the relation, else `usual`. The rest as clearly_less."""
    return smaller if clearly_less((usual.rows, usual.cols), (smaller.rows, smaller.cols), relation, keys, over) else usual


def clearly_less(usual: Size, smaller: Size, relation: Condition, keys: Term, over: Side = "keys") -> bool:
    """Whether no tile of `usual` is full, most of the smaller ones are, and those of `usual` hold at least LEAST_GAIN times the pairs
    (tiles x rows x cols, at LONG tokens).

    Where some tile is full (causal, windows, blocks as large as the tiles), sizes fit the relation, and `smaller` is not even counted.
    Where isl finds no loops every tile is visited; such counts say nothing, and the answer is no.

    relation: over tokens, or over slots, without choices; keys: the number of key positions as a term in N; over: the side that comes and
    goes. The tiles are the same from either, but then these are the kernel's own loops, which isl has to find once only.
    """
    if smaller[0] * smaller[1] >= usual[0] * usual[1] or sum(1 for _ in walk(relation)) > MOST_NODES:
        return False
    before, full, exact = _area(usual, relation, keys, over)
    if full or not exact:
        return False
    after, full, exact = _area(smaller, relation, keys, over)
    return exact and 2 * full > after and before >= LEAST_GAIN * after


def _area(size: Size, relation: Condition, keys: Term, over: Side) -> tuple[int, int, bool]:
    """Pairs in the tiles that are visited and in those of them that are full, and whether these are the relation's tiles."""
    rows, cols = size
    full, partial, exact = count_tiles(relation, rows, cols, LONG, _HEADS, _KV_HEADS, keys, over)
    return rows * cols * int(full.sum() + partial.sum()), rows * cols * int(full.sum()), exact


def visits(size: Size, relation: Condition, keys: Term) -> float:
    """Key tiles that query tiles of LONG tokens visit, on average."""
    full, partial, _ = count_tiles(relation, *size, LONG, _HEADS, _KV_HEADS, keys, "keys")
    return float((full + partial).mean())
