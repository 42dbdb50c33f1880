"""What the templates see in which every query sees the blocks of one list and nothing else: one frozen context for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Combining:
    """How a branch's kernels end with the output. branches: labels in the order of the gates; own: those of the branch itself, which may
    count several times."""

    kind: Literal["gate", "mix"]
    branches: tuple[str, ...]
    own: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OneChoice:
    """attend_alone, attend_union, attend_by_blocks, merge_parts and the queries' gradients of the first two.

    tile_n: keys a step; tiles: steps a block. causal: a query sees of its blocks the keys up to its own; otherwise mask says which, over
    tokens by cols, and mask_alone over one token and its cols. combining: how the kernel ends with the output, None where it does not.
    first: of attend_union, as in ChosenStep."""

    name: str
    doc: str
    softcap: float | None
    alibi: bool
    sink: bool
    block: int
    width: int
    padded_width: int
    tile_n: int
    tiles: int
    causal: bool
    mask: str
    mask_alone: str
    combining: Combining | None
    first: int


@dataclass(frozen=True, slots=True)
class Inverse:
    """invert_blocks.py.j2. may_skip: a flag may say that nobody will ask for the index."""

    may_skip: bool


@dataclass(frozen=True, slots=True)
class ByBlocks:
    """attend_by_blocks_host.py.j2. by_blocks, merge: kernels; rows, warps, stages: tiles of the first; merge_rows and so on: of
    the second; combines: that one ends with the output."""

    name: str
    doc: str
    by_blocks: str
    merge: str
    sink: bool
    combines: bool
    block: int
    width: int
    rows: int
    warps: int
    stages: int
    merge_rows: int
    merge_warps: int
    merge_stages: int
