"""What a kernel is launched with: the shape that it is made for, the card, its tiles, and decisions that somebody measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Dtype: TypeAlias = Literal["bf16", "fp16", "fp32", "fp64"]
"""Element types. fp64 is for gradient checks under Triton's interpreter."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a schedule knows of a card. shared_memory: bytes one program may use; static_pairs: the most pairs (queries times keys)
    a step of attention over a static relation may hold before its registers spill, measured by compiling."""

    shared_memory: int
    static_pairs: int


CARDS = {
    "sm_80": Card(163 * 1024, 64 * 64),
    "sm_86": Card(99 * 1024, 64 * 64),
    "sm_90": Card(227 * 1024, 128 * 64),
    "sm_100": Card(227 * 1024, 128 * 64),
    "gfx942": Card(64 * 1024, 128 * 64),
    "interpreter": Card(1 << 30, 128 * 64),
}


@dataclass(frozen=True, slots=True)
class LaunchShape:
    """What tiles depend on. dim_qk, dim_v: head dimensions; rows, cols: tile sizes to use whatever the cost (None: choose);
    templates: "portable" leaves out the kernels that one architecture has beside the plain ones;
    pins: decisions for single kernels, by the kernel's name, that somebody measured."""

    dim_qk: int = 128
    dim_v: int = 128
    dtype: Dtype = "bf16"
    card: str = "sm_90"
    rows: int | None = None
    cols: int | None = None
    templates: Literal["best", "portable"] = "best"
    pins: tuple[tuple[str, Pin], ...] = ()

    @property
    def element_bytes(self) -> int:
        return {"fp64": 8, "fp32": 4}.get(self.dtype, 2)

    @property
    def padded(self) -> tuple[int, int]:
        """The head dimensions as the kernels see them: powers of two from 16."""
        return power_of_two(self.dim_qk), power_of_two(self.dim_v)


@dataclass(frozen=True, slots=True)
class Tiles:
    """rows: queries a program; cols: keys a step; warps, stages: Triton's launch options."""

    rows: int
    cols: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Pin:
    """A decision for one kernel. hopper: the Gluon kernel stands beside the plain one and these are its tiles (True), there is none
    (False), or the schedule decides about it and these are the plain kernel's tiles (None)."""

    tiles: Tiles
    hopper: bool | None = None


def on_hopper(shape: LaunchShape) -> bool:
    """Whether Gluon kernels for Hopper may stand beside the plain ones. Tile sizes that the caller insists on are for the plain ones."""
    return shape.card == "sm_90" and shape.element_bytes == 2 and shape.templates == "best" and shape.rows is None and shape.cols is None


def pinned(shape: LaunchShape, kernel: str) -> Pin | None:
    """What somebody decided for the kernel of this name, if anything. Tile sizes that the caller insists on win."""
    if shape.rows is not None or shape.cols is not None:
        return None
    return dict(shape.pins).get(kernel)


def plain_tiles(shape: LaunchShape, kernel: str, tiles: Tiles) -> Tiles:
    """The tiles of a plain kernel: the pinned ones, if they are for it, or those that the schedule chose."""
    pin = pinned(shape, kernel)
    return tiles if pin is None or pin.hopper else pin.tiles


def hopper_tiles(shape: LaunchShape, kernel: str, tiles: Tiles | None, fits: Callable[[Tiles], bool]) -> Tiles | None:
    """The tiles of a Gluon kernel beside the plain one, as pinned if they are and the kernel is right with them. tiles: the schedule's own;
    None where there can be none, and then no pin makes one. fits: whether the kernel may have other ones."""
    pin = pinned(shape, kernel)
    if pin is None or pin.hopper is None or tiles is None:
        return tiles
    if not pin.hopper:
        return None
    return pin.tiles if fits(pin.tiles) else tiles


def power_of_two(size: int, least: int = 16) -> int:
    """The least power of two that is at least `size` and `least`."""
    return max(least, 1 << (size - 1).bit_length())


def first_that_fits(
    ladder: Sequence[Tiles],
    shape: LaunchShape,
    key_dims: int,
    query_dims: int,
    element: int | None = None,
    stay: Literal["rows", "cols"] = "rows",
) -> Tiles:
    """The first tiles whose pipelined operands and those that stay fit in the card's shared memory; the last if none does.

    stay: whether a program keeps its queries and keys come and go, or the other way round. element: bytes of one.
    """
    element = element or shape.element_bytes
    for tiles in ladder:
        keys, queries = tiles.cols * key_dims, tiles.rows * query_dims
        moving, staying = (keys, queries) if stay == "rows" else (queries, keys)
        if (tiles.stages * moving + staying) * element <= CARDS[shape.card].shared_memory:
            return tiles
    return ladder[-1]


def tile_override(shape: LaunchShape, tiles: Tiles, rows: int | None = None) -> Tiles:
    """The tiles, in the sizes that the caller insists on."""
    return Tiles(rows or shape.rows or tiles.rows, shape.cols or tiles.cols, tiles.warps, tiles.stages)
