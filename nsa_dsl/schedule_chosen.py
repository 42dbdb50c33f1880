"""Where every query sees the blocks of one list and nothing else: which branches those are, and tiles of the kernels made for them.

Measured on an H100; `schedule` asks here. There are three ways to walk such lists. One query at a time fills the matrix units with the
heads of a group, if there are many, and loads every block anew. Over the union of neighbouring queries, a block that several chose is
loaded once, but computed for those that did not choose it, too. By blocks, the queries that chose a block come to it: every row does
useful work however few heads a group has, but each part of a row's softmax goes through memory.
"""

from __future__ import annotations

from typing import TypeAlias

from nsa_dsl.launch import power_of_two
from nsa_dsl.pattern import Branch
from nsa_dsl.relation import EMPTY, Chosen, Condition, Not, SameDocument, choices, rewrite, walk

Sizes: TypeAlias = tuple[int, int, int, int]
"""rows, cols, warps, stages: what schedule.Tiles is made of."""

UNION: tuple[Sizes, ...] = ((64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2), (16, 16, 4, 1))
UNION_PARTED: tuple[Sizes, ...] = ((64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2), (16, 16, 4, 1))
UNION_QUERIES: tuple[Sizes, ...] = ((64, 64, 4, 2), (64, 32, 4, 2), (32, 32, 4, 2), (16, 16, 4, 1))
UNION_QUERIES_WIDE: tuple[Sizes, ...] = ((64, 32, 8, 2), (32, 32, 4, 2), (16, 16, 4, 1))
QUERIES_WIDE: tuple[Sizes, ...] = ((16, 64, 4, 2), (16, 32, 4, 2), (16, 16, 4, 1))
UNION_32_BIT: tuple[Sizes, ...] = ((32, 16, 4, 2), (16, 16, 4, 1))
"""Tiles from the fastest to the smallest. WIDE: for head dimensions above 128, whose rows leave few registers. PARTED: for those that are
parted; with 192 features and 128 values, two stages leave room for a second program on a multiprocessor, three do not."""

UNION_QUERIES_MOST = 48
"""The largest unions that pay in the queries' gradient, where the heads of a group fill a matrix product's 16 rows: in 64ths of the blocks
that the queries of a tile chose, each block counted for each query. The forward gains from every union."""

BY_BLOCKS_TILE = 64
"""Rows that meet a block at a time."""

FULL_GROUP = 8
"""Groups of so many heads and more fill the rows of a usual tile with few queries; smaller ones walk unions in tiles of 16 rows."""

BY_BLOCKS_GROUP, BY_BLOCKS_LISTS, BY_BLOCKS_SHARE = FULL_GROUP - 1, 2**17, 8
"""Groups of at most so many heads may be walked by blocks, from so many lists on (one a query of a group). They are where
all unions together hold more than one block to so many that the rows chose: both take the same time there."""

MERGED: Sizes = (16, 1, 4, 3)
"""Tiles of the kernel that makes one softmax of the parts: rows, and a part of each at a time."""

PART_ROWS = 1024
"""Query rows that one program of a block goes through: so few that a block that every query chose is shared by many programs."""

PART_BYTES = 2**30
"""Most memory that the parts of softmaxes may take at once."""


def parts(dim_qk: int) -> tuple[int, int]:
    """The features of queries and keys as kernels of chosen blocks hold them: the first ones, which make a product of their own, and the
    others, both powers of two. (0, all of them) where one product takes no more: 192 is 128 and 64 rather than 256, 112 is 128."""
    padded = power_of_two(dim_qk)
    first = padded // 2
    last = power_of_two(max(1, dim_qk - first))
    return (first, last) if first >= 16 and first + last < padded else (0, padded)


def takes_one_list(branch: Branch, where: Condition, per_head: bool) -> bool:
    """Whether the branch's kernels may be those for one list: every query chooses for itself, the heads of a group together, blocks of
    whole tiles, and a pair outside the choice is never seen."""
    if len(branch.choices) != 1 or per_head:
        return False
    (choice,) = branch.choices
    atom = Chosen(choice.name)
    if choice.share != "group" or choice.every != 1 or not choice.count or choice.block % 16:
        return False
    if any(isinstance(each, SameDocument) or (isinstance(each, Not) and choice.name in choices(each)) for each in walk(where)):
        return False
    return rewrite(where, {}, {atom: EMPTY}) == EMPTY
