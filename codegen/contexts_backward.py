"""What the templates of attention's gradient see: one frozen context each. tile_m counts queries and tile_n keys, as in the forward."""

from __future__ import annotations

from dataclasses import dataclass

from nsa_dsl.codegen.contexts import ChosenAttend, Launch, StaticAttend, Walk


@dataclass(frozen=True, slots=True)
class StaticQueries(StaticAttend):
    """attend_static_queries.py.j2."""


@dataclass(frozen=True, slots=True)
class ChosenQueries(ChosenAttend):
    """attend_chosen_queries.py.j2."""


@dataclass(frozen=True, slots=True)
class ListMember:
    """A membership test of a tile's keys in the lists of its rows. lists: the rows' pointers; turns: of a binary search."""

    variable: str
    pointer: str
    lists: str
    block: int
    width: int
    turns: int


@dataclass(frozen=True, slots=True)
class StaticKeys:
    """attend_static_keys.py.j2. fast: as in StaticAttend; mask: over cols by rows; by_head: which query tiles there are differs between
    heads; same_document: the statement that compares documents; walks: over query tiles."""

    name: str
    doc: str
    fast: bool
    softcap: float | None
    alibi: bool
    document: bool
    by_head: bool
    tile_m: int
    tile_n: int
    mask: str
    key_position: str
    load_key_documents: tuple[str, ...]
    same_document: str
    members: tuple[ListMember, ...]
    walks: tuple[Walk, ...]


@dataclass(frozen=True, slots=True)
class ChosenKeys:
    """attend_chosen_keys.py.j2. width: blocks a list has at most; tiles: key tiles a block; every: queries an entry of a list stands for;
    by_head: an entry also says which head of the group; causal: entries are queries, ascending, and see the keys up to their own; first:
    as in ChosenStep."""

    name: str
    doc: str
    softcap: float | None
    alibi: bool
    document: bool
    every: int
    block: int
    by_head: bool
    width: int
    tiles: int
    tile_m: int
    tile_n: int
    first: int
    causal: bool
    mask: str
    members: tuple[ListMember, ...]


@dataclass(frozen=True, slots=True)
class SlopesQueries:
    """slopes_queries.py.j2. width: blocks a list has at most; first: as in ChosenStep."""

    name: str
    doc: str
    block: int
    width: int
    first: int


@dataclass(frozen=True, slots=True)
class SumBlocks:
    """sum_blocks.py.j2. tiles: tiles a block."""

    name: str
    doc: str
    block: int
    tile: int
    tiles: int


@dataclass(frozen=True, slots=True)
class GuardedLaunch:
    """A launch that runs if any of the gradients `wanted` is; empty: always."""

    launch: Launch
    wanted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackwardModule:
    """module_backward.py.j2: a whole generated module. inverts: some choice is read backwards. wild: the tensors that find_wild looks at;
    splits: the heads may be gone through a part at a time."""

    title: str
    quoted: tuple[str, ...]
    settings: tuple[str, ...]
    kernels: tuple[str, ...]
    launches: tuple[GuardedLaunch, ...]
    inverts: bool
    wild: str
    splits: bool
