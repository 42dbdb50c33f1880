"""What the Hopper templates of attention's gradient see: one frozen context each."""

from __future__ import annotations

from dataclasses import dataclass

from nsa_dsl.codegen.contexts import PieceText
from nsa_dsl.codegen.contexts_hopper import HopperWalk


@dataclass(frozen=True, slots=True)
class HopperShared:
    """hopper_backward.py.j2. tail: features of queries and keys past the 128th, here and below."""

    tail: int


@dataclass(frozen=True, slots=True)
class HopperBranch:
    """What is a branch's own in hopper_queries.py.j2. tag: the end of its variables' names, empty if it is alone; mask: over rows by cols;
    walk: over the key tiles of 128 rows; pair_walk: of 64 rows of two heads."""

    tag: str
    mask: str
    walk: HopperWalk
    pair_walk: HopperWalk


@dataclass(frozen=True, slots=True)
class HopperQueries:
    """hopper_queries.py.j2. buffers: of the ring of keys and values; branches: in the order in which they are gone through."""

    name: str
    doc: str
    tile_n: int
    buffers: int
    tail: int
    branches: tuple[HopperBranch, ...]


@dataclass(frozen=True, slots=True)
class HopperKeys:
    """hopper_keys.py.j2. mask: over cols by rows; buffers: of the ring of rows; walk: over the query tiles of
    128 keys; half: the pieces of the walk of 64 keys."""

    name: str
    doc: str
    tile_m: int
    buffers: int
    tail: int
    mask: str
    walk: HopperWalk
    half: tuple[PieceText, ...]
