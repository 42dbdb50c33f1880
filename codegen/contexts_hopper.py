"""What a Hopper template sees: one frozen context each, as in contexts."""

from __future__ import annotations

from dataclasses import dataclass

from nsa_dsl.codegen.contexts import PieceText


@dataclass(frozen=True, slots=True)
class HopperWalk:
    """The tiles that a program visits. name: of the device functions that tell them; pieces: the first `masked` of them are masked, and
    only those."""

    name: str
    masked: int
    pieces: tuple[PieceText, ...]


@dataclass(frozen=True, slots=True)
class HopperAttend:
    """hopper_attend.py.j2. consumers: warpgroups of 64 rows, two or three; packed: they share the rows, each with
    a head of its own; tile_n: keys a step; buffers: places of the rings of keys and
    values; turns: whether consumers issue their products in turn; walk: over key tiles; mask: over rows[:, None] and cols[None, :]; ragged:
    it may be true for keys past the last; tail: features of queries and keys past the 128th."""

    name: str
    doc: str
    consumers: int
    packed: bool
    tile_n: int
    buffers: int
    turns: bool
    walk: HopperWalk
    mask: str
    ragged: bool
    tail: int
