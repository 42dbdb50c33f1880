"""How many pairs a relation allows at a given length, and how many tiles it visits, exactly: the cost of a pattern and the density it
claims.

A tile of one query by a few keys that is full is counted by arithmetic; only partial ones are evaluated pair by pair. The
tile's width is chosen so that little is left to evaluate: 1 for strides, a block for blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from nsa_dsl.integer_set import TooComplex
from nsa_dsl.relation import Condition, SameDocument, Term, Truth, Var, evaluate, rewrite, symbols
from nsa_dsl.tiles import Piece, Side, tiling

_Integers = npt.NDArray[np.int64]

_WIDTHS = (1, 64, 8, 16, 32, 128)
_LITTLE_WORK = 2**25
_MOST_WORK = 2**29
"""Conditions to evaluate in a few seconds."""
_MOST_INEXACT = 1
"""Widths for which isl may give up before others, each of which takes it seconds, are not tried."""
_PAIRS_AT_ONCE = 2**21
_TILES_AT_ONCE = 1 << 22
"""Tiles that are asked for at once: some tens of megabytes."""
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


@lru_cache(maxsize=256)
def count_tiles(
    relation: Condition, rows: int, cols: int, n: int, heads: int, kv_heads: int, keys: Term, over: Side
) -> tuple[_Integers, _Integers, bool]:
    """How many full and partial tiles each outer tile visits at length n, averaged over heads and rounded up where they differ, and whether
    they are those of the relation: otherwise isl gave up, and every tile is visited. Unpacked batch; arguments as `tiling`'s."""
    extent = max(0, int(evaluate(keys, {"N": n})))
    outer = -(-n // rows) if over == "keys" else -(-extent // cols)
    every = range(heads) if "h" in symbols(relation) else range(1)
    counts = np.zeros((2, outer), np.int64)
    found = tiling(rewrite(relation, {}, {SameDocument(): Truth(True)}), rows, cols, keys=keys, over=over)
    for head in every:
        sizes = {"N": n, "heads": heads, "kv_heads": kv_heads, "h": head}
        environment: dict[str, int | _Integers] = {**sizes, "tile": np.arange(outer, dtype=np.int64)}
        for piece in found.pieces:
            counts[0 if piece.full else 1] += _steps(piece, environment)
    full, partial = -(-counts // len(every))
    return full, partial, found.exact


def _steps(piece: Piece, environment: dict[str, int | _Integers]) -> _Integers:
    """The tiles that each outer tile visits in one piece."""
    low, high = (evaluate(each, environment) for each in (piece.low, piece.high))
    steps = np.maximum(0, -((low - high) // piece.step))
    if piece.guard is not None:
        steps = np.where(evaluate(piece.guard, environment), steps, 0)
    steps = np.broadcast_to(steps, np.shape(environment["tile"])).astype(np.int64)
    if piece.inner is None:
        return steps
    offset = np.arange(int(steps.max(initial=0)))[None, :]
    low, outer = np.broadcast_to(low, steps.shape), np.asarray(environment["tile"])
    found = np.zeros_like(steps)
    some = max(1, _TILES_AT_ONCE // max(1, offset.size))
    for start in range(0, len(steps), some):
        rows = slice(start, start + some)
        here = {**environment, "tile": outer[rows, None], "j": low[rows, None] + piece.step * offset}
        found[rows] = ((offset < steps[rows, None]) & evaluate(piece.inner, here)).sum(1)
    return found
