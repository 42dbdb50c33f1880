"""What a template sees: one frozen context each, of texts and numbers, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from nsa_dsl.pattern import Reduce


@dataclass(frozen=True, slots=True)
class PieceText:
    """One loop over key tiles, as Triton expressions over tile, n_tokens, head, heads, kv_heads."""

    low: str
    high: str
    step: int
    full: bool
    guard: str | None
    inner: str | None


@dataclass(frozen=True, slots=True)
class Walk:
    """Loops of one kind. rolled: so many that they become one loop over pieces."""

    note: str
    full: bool
    rolled: bool
    pieces: tuple[PieceText, ...]


@dataclass(frozen=True, slots=True)
class Shared:
    """What the kernels of a module share. acc: the type of sums, float32 or float64; the others: which device functions they need."""

    gradient: bool
    gathers: bool
    lists: bool
    acc: str
    softcap: bool
    alibi: bool
    members: bool


@dataclass(frozen=True, slots=True)
class StaticAttend:
    """attend_static.py.j2. fast: a fast kernel may stand beside this one, which then takes only what that one cannot. mask: over rows,
    cols; key_position: the token position of a key, for alibi."""

    name: str
    doc: str
    fast: bool
    softcap: float | None
    alibi: bool
    sink: bool
    document: bool
    tile_m: int
    tile_n: int
    mask: str
    key_position: str
    load_key_documents: tuple[str, ...]
    walks: tuple[Walk, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A membership test of a tile's keys in a list of chosen blocks."""

    variable: str
    pointer: str
    block: int
    width: int
    chunk: int


@dataclass(frozen=True, slots=True)
class ListWalk:
    """The walk over one choice's blocks. units: how many lists a batch has; unit: which of them a program reads.
    whole_tiles: a block is cut into tiles; otherwise a tile gathers keys of several blocks. ragged: the last tile of a block
    reaches past it."""

    choice: str
    pointer: str
    units: str
    unit: str
    every: int
    width: int
    padded_width: int
    block: int
    tiles: int
    whole_tiles: bool
    ragged: bool
    mask: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class ChosenAttend:
    """attend_chosen.py.j2. run: queries a program."""

    name: str
    doc: str
    softcap: float | None
    alibi: bool
    sink: bool
    document: bool
    run: int
    per_head: bool
    tile_n: int
    walks: tuple[Walk, ...]
    static_mask: str
    static_members: tuple[Member, ...]
    lists: tuple[ListWalk, ...]


@dataclass(frozen=True, slots=True)
class Compress:
    """compress.py.j2 (by mean, max or weighted) and compress_host.py.j2. parameters: what the host function takes."""

    name: str
    memory: str
    doc: str
    by: str
    parameters: str
    block: int
    stride: int
    tile: int


@dataclass(frozen=True, slots=True)
class Pool:
    """pool.py.j2. by: mean, max or minmax."""

    name: str
    doc: str
    by: str
    block: int
    tile: int


@dataclass(frozen=True, slots=True)
class Score:
    """score.py.j2. kind: slots (probabilities of a compressed branch) or mean, max, minmax (pooled keys).
    A block reads slots slots_per_block * block + tap for tap in [first_tap, last_tap]."""

    name: str
    doc: str
    kind: str
    softcap: float | None
    alibi: bool
    document: bool
    every: int
    block: int
    reduce: Reduce
    hoist_keys: bool
    tile_m: int
    tile_b: int
    slots_per_block: int
    first_tap: int
    last_tap: int
    tap_weight: str
    stride: int
    block_slots: int
    mask: str
    load_key_documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SlotScore:
    """score_slots.py.j2. tile_n: slots a tile, tile_b: blocks a tile. edges: a block's last slots reach into the next block, so that a
    tile's last block leaves a share for the next tile."""

    name: str
    doc: str
    softcap: float | None
    alibi: bool
    document: bool
    every: int
    block: int
    reduce: Reduce
    tile_m: int
    tile_n: int
    tile_b: int
    slots_per_block: int
    stride: int
    block_slots: int
    edges: bool
    mask: str
    load_key_documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Top:
    """top.py.j2. keep, exclude: over query_block and blocks. given: the scores are the caller's, in any layout; signed: they may be
    negative; edge_blocks: blocks a tile of the score kernel that left edges (0: none); rank_bits: enough for the number of blocks to
    choose."""

    name: str
    doc: str
    block: int
    every: int
    whole_blocks: bool
    given: bool
    signed: bool
    edge_blocks: int
    rank_bits: int
    keep: str | None
    exclude: str | None


@dataclass(frozen=True, slots=True)
class Combine:
    """combine.py.j2."""

    name: str
    doc: str
    kind: str
    branches: tuple[str, ...]
    tile: int


LaunchValue: TypeAlias = str | int | bool | tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """How the host function of a module runs one step: `kind` picks the template's macro, the rest fills it."""

    kind: str
    note: str
    out: str
    values: tuple[tuple[str, LaunchValue], ...]

    def __getitem__(self, key: str) -> LaunchValue:
        return dict(self.values)[key]


@dataclass(frozen=True, slots=True)
class Module:
    """module.py.j2: a whole generated module. choices_end: how many launches it takes until every choice is made."""

    title: str
    quoted: tuple[str, ...]
    settings: tuple[str, ...]
    kernels: tuple[str, ...]
    functions: tuple[str, ...]
    launches: tuple[Launch, ...]
    choices_end: int
    lists_blocks: bool
    result: str
