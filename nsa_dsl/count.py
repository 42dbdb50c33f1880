"""How many pairs a relation allows at a given length, exactly: the cost of a pattern and the density it claims.

A tile of one query by a few keys that is full is counted by arithmetic; only partial ones are evaluated pair by pair. The
tile's width is chosen so that little is left to evaluate: 1 for strides, a block for blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nsa_dsl.integer_set import TooComplex
from nsa_dsl.relation import Condition, SameDocument, Term, Truth, Var, evaluate, rewrite, symbols
from nsa_dsl.tiles import Piece, tiling

_Integers = npt.NDArray[np.int64]

_WIDTHS = (1, 64, 8, 16, 32, 128)
_LITTLE_WORK = 2**25
_MOST_WORK = 2**29
"""Conditions to evaluate in a few seconds."""
_MOST_INEXACT = 1
"""Widths for which isl may give up before others, each of which takes it seconds, are not tried."""
_PAIRS_AT_ONCE = 2**21
_MOST_PIECES = 64


def count_pairs(relation: Condition, n: int, *, heads: int = 1, kv_heads: int = 1, keys: Term = Var("N")) -> int:  # noqa: B008
    """The pairs allowed at length n, over all heads. keys: the number of key positions as a term in N. Unpacked batch."""
    return int(count_keys(relation, n, heads=heads, kv_heads=kv_heads, keys=keys).sum())


def count_keys(
    relation: Condition,
    n: int,
    *,
    heads: int = 1,
    kv_heads: int = 1,
    keys: Term = Var("N"),  # noqa: B008
) -> _Integers:
    """How many keys each query sees: an array (heads, queries). Raises ValueError for a choice, and TooComplex for what
    would take long."""
    unpacked = rewrite(relation, {}, {SameDocument(): Truth(True)})
    environment: dict[str, int | _Integers] = {"N": n, "heads": heads, "kv_heads": kv_heads, "tile": np.arange(n, dtype=np.int64)}
    extent = max(0, int(evaluate(keys, environment)))
    best: list[_Walk] = []
    inexact = 0
    for width in _WIDTHS:
        tiles = tiling(unpacked, 1, width, keys=keys, most=_MOST_PIECES)
        walks = [_Walk(piece, width, unpacked, {**environment, "h": 0}, extent) for piece in tiles.pieces]
        inexact += not tiles.exact
        if not best or _work(walks) < _work(best):
            best = walks
        if _work(best) <= _LITTLE_WORK or inexact > _MOST_INEXACT:
            break
    if _work(best) > _MOST_WORK:
        raise TooComplex(f"more than {_MOST_WORK:,} pairs to look at")
    distinct = range(heads) if "h" in symbols(unpacked) else range(1)
    counts = [sum((replace(walk, environment={**environment, "h": h}).counts() for walk in best), np.zeros(n, np.int64)) for h in distinct]
    return np.broadcast_to(np.stack(counts), (heads, n))


def _work(walks: list[_Walk]) -> int:
    return sum(walk.work for walk in walks)


@dataclass(frozen=True)
class _Walk:
    """The tiles of one piece, for every query: one query by `width` keys each, of `extent` keys."""

    piece: Piece
    width: int
    relation: Condition
    environment: dict[str, int | _Integers]
    extent: int

    @cached_property
    def steps(self) -> _Integers:
        """How many tiles the loop of each query visits."""
        low, high = (evaluate(each, self.environment) for each in (self.piece.low, self.piece.high))
        steps = np.maximum(0, -((low - high) // self.piece.step))
        allowed = True if self.piece.guard is None else evaluate(self.piece.guard, self.environment)
        return np.broadcast_to(np.where(allowed, steps, 0), np.shape(self.environment["tile"]))

    @property
    def work(self) -> int:
        """The conditions to evaluate."""
        tiles = int(self.steps.sum())
        return (0 if self.piece.inner is None else tiles) + (0 if self.piece.full else tiles * self.width)

    def counts(self) -> _Integers:
        """The keys that each query sees in this piece."""
        if self.piece.full and self.piece.inner is None:
            return self.steps * self.width
        counts = np.zeros_like(self.steps)
        longest = int(self.steps.max(initial=0))
        rows = max(1, _PAIRS_AT_ONCE // max(1, longest * self.width))
        for start in range(0, len(counts), rows):
            counts[start : start + rows] = self._counts(slice(start, start + rows))
        return counts

    def _counts(self, rows: slice) -> _Integers:
        """Of some queries, by evaluation on an array (queries, tiles, keys of a tile)."""
        query = np.asarray(self.environment["tile"])[rows]
        steps = self.steps[rows, None, None]
        here = {**self.environment, "tile": query[:, None, None], "i": query[:, None, None]}
        low = np.broadcast_to(evaluate(self.piece.low, self.environment), np.shape(self.steps))[rows, None, None]
        offset = np.arange(int(steps.max(initial=0)))[None, :, None]
        tile = low + self.piece.step * offset
        inside = offset < steps
        if self.piece.inner is not None:
            inside = inside & evaluate(self.piece.inner, {**here, "j": tile})
        if self.piece.full:
            return np.asarray(inside.sum(axis=(1, 2)) * self.width, np.int64)
        key = tile * self.width + np.arange(self.width)[None, None, :]
        allowed = inside & (key < self.extent) & evaluate(self.relation, {**here, "j": key})
        return np.asarray(allowed.sum(axis=(1, 2)), np.int64)
