"""Tiles of the kernels for Hopper's copy engine and warpgroup products, and where there are such kernels.

Measured on an H100; `schedule` and `schedule_backward` ask here. Rows are 64 to a consumer warpgroup, so 128 for the usual two; warps are
those that compute; stages are the places of the rings through which the other operands come and go.
"""

from __future__ import annotations

from typing import TypeAlias

from nsa_dsl.launch import Tiles
from nsa_dsl.lift import key_positions
from nsa_dsl.pattern import Branch
from nsa_dsl.relation import Condition, FloorDiv, Modulo, SameDocument, Term, symbols, walk
from nsa_dsl.schedule_area import clearly_less, visits
from nsa_dsl.tiles import Side, tiling

Sizes: TypeAlias = tuple[int, int, int, int]
"""rows, cols, warps, stages: what schedule.Tiles is made of. Where attention's rows are fewer than 64 to a consumer, heads share them."""

HEAD_DIMENSIONS = (64, 128)
"""Head dimensions that are whole boxes of the copy engine."""

MOST_PIECES = 6
"""Loops over tiles that a kernel may have: their tiles are one sequence, and which is next is asked piece by piece."""

FORWARD = (128, 128, 8, 2)
"""Nothing else measured (64 keys, three places, 64 rows of two heads) was 3% faster for windows of 512 and 1024, slots or causal."""

NARROW_FORWARD = (192, 128, 12, 2)
"""A third consumer, for heads of 64 features, whose exponentials take as long as their products. It gains where walks are so long that
query tiles of more rows hardly visit more key tiles: causal at 32,768 tokens 0.6% more (480 TFLOP/s for 455), at 8,192 2.3% (440 for 438),
a window of 1,024 11% (312 for 344)."""

PACKED = (64, 64, 8, 4)
"""Two heads of a group with the same 64 rows, which see the same keys. For lists of blocks of 64, where a tile of FORWARD holds parts of
four: 10% of 32,768 x 32,768 pairs in 3.1 ms instead of 15.8 by the plain kernel, whose every tile was masked."""

MOST_GROWTH = 1.02
"""As many times the key tiles of FORWARD may NARROW_FORWARD visit."""

LEAST_VISITS = 32
"""Key tiles of a query tile from which NARROW_FORWARD is worth its longer start: causal at 8,192 tokens. Not measured from 9 to these."""

QUERIES = {(64, 64): (128, 128, 8, 3), (128, 128): (128, 64, 8, 3), (192, 128): (128, 64, 8, 2)}
"""By head dimensions of queries and values, as KEYS. A program whose heads share keys two by two takes half the rows of each. With 192
features there is no room for a third stage beside the sums on their way out."""

KEYS = {(64, 64): (64, 128, 8, 2), (128, 128): (64, 128, 8, 2), (192, 128): (32, 128, 8, 4)}
"""With 192 features the sums take 160 registers a thread, which leaves room for the scores of 32 rows: with 64 the assembler makes every
product wait for the one before (and spills 192 bytes)."""


def forward_sizes(branch: Branch, relation: Condition, dim_qk: int, dim_v: int) -> Sizes | None:
    """Sizes of attention over a static relation; None where the kernel does not reach. relation: over tokens, or over slots when the
    branch's memory is Compress."""
    if dim_qk not in (*HEAD_DIMENSIONS, 192) or dim_v not in HEAD_DIMENSIONS:
        return None
    if branch.softcap is not None or branch.bias is not None or branch.sink:
        return None
    keys = key_positions(branch)
    if _packs(relation, dim_qk, keys):
        return PACKED
    if not walks_as_one(relation, *FORWARD[:2], keys):
        return None
    if NARROW_FORWARD not in forward_choices(dim_qk, dim_v) or not walks_as_one(relation, *NARROW_FORWARD[:2], keys):
        return FORWARD
    usual, narrow = (visits(each[:2], relation, keys) for each in (FORWARD, NARROW_FORWARD))
    return NARROW_FORWARD if usual >= LEAST_VISITS and narrow <= MOST_GROWTH * usual else FORWARD


def _packs(relation: Condition, dim_qk: int, keys: Term) -> bool:
    """Whether all heads see the same keys, and tiles of PACKED visit clearly less of them than those of FORWARD."""
    if dim_qk not in HEAD_DIMENSIONS or not symbols(relation).isdisjoint({"h", "heads", "kv_heads"}):
        return False
    return clearly_less(FORWARD[:2], PACKED[:2], relation, keys) and walks_as_one(relation, *PACKED[:2], keys)


def forward_fits(branch: Branch, relation: Condition, tiles: Tiles) -> bool:
    """Whether the kernel of forward_sizes, where there is one, may have these tiles: their walk is one, and heads that share rows see the
    same keys."""
    shared = tiles.rows < 16 * tiles.warps
    if shared and not symbols(relation).isdisjoint({"h", "heads", "kv_heads"}):
        return False
    return walks_as_one(relation, tiles.rows, tiles.cols, key_positions(branch))


def forward_choices(dim_qk: int, dim_v: int) -> tuple[Sizes, ...]:
    """The sizes among which forward_sizes chooses. Three consumers have 160 registers a thread: enough for 64 features."""
    return (FORWARD, NARROW_FORWARD) if dim_qk == dim_v == 64 else (FORWARD,)


def takes_turns(dim_v: int) -> bool:
    """Whether the consumers of forward_sizes issue their products in turn: with narrow heads exponentials take longer than products."""
    return dim_v == 64


def walks_as_one(relation: Condition, rows: int, cols: int, keys: Term, over: Side = "keys") -> bool:
    """Whether the key tiles of every query tile are one short sequence of loops; over: or, for "queries", the other way round."""
    if any(isinstance(node, SameDocument) for node in walk(relation)):
        return False
    pieces = tiling(relation, rows, cols, keys=keys, over=over).pieces
    # Divisions in the mask of every tile take registers that there are not.
    if not any(each.full for each in pieces) and any(isinstance(node, FloorDiv | Modulo) for node in walk(relation)):
        return False
    return 0 < len(pieces) <= MOST_PIECES and all(each.inner is None for each in pieces)


def queries_sizes(branch: Branch, relation: Condition, dim_qk: int, dim_v: int) -> Sizes | None:
    """Sizes of the queries' gradient over a static relation; None where the kernel does not reach. relation: as in forward_sizes."""
    sizes = QUERIES.get((dim_qk, dim_v))
    if sizes is None:
        return None
    return sizes if queries_fit(branch, relation, Tiles(*sizes)) else None


def queries_fit(branch: Branch, relation: Condition, tiles: Tiles) -> bool:
    """Whether the kernel of queries_sizes may have these tiles, for one head and for two."""
    return all(_differentiable(branch, relation, rows, tiles.cols, "keys") for rows in (tiles.rows, tiles.rows // 2))


def keys_sizes(branch: Branch, relation: Condition, dim_qk: int, dim_v: int) -> Sizes | None:
    """Sizes of the keys' and values' gradients: rows come and go, cols stay. Otherwise as queries_sizes."""
    sizes = KEYS.get((dim_qk, dim_v))
    if sizes is None:
        return None
    return sizes if keys_fit(branch, relation, Tiles(*sizes)) else None


def keys_fit(branch: Branch, relation: Condition, tiles: Tiles) -> bool:
    """Whether the kernel of keys_sizes may have these tiles."""
    return _differentiable(branch, relation, tiles.rows, tiles.cols, "queries")


def _differentiable(branch: Branch, relation: Condition, rows: int, cols: int, over: Side) -> bool:
    """Whether the gradient's kernels take the branch: their scores are plain products, and no head has a mask of its own."""
    if branch.softcap is not None or branch.bias is not None or not symbols(relation).isdisjoint({"h", "heads", "kv_heads"}):
        return False
    return walks_as_one(relation, rows, cols, key_positions(branch), over)
