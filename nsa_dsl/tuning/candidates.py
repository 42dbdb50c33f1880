"""What may be tried for each kernel: the neighbours of the schedule's own tiles that fit the card, the nearest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeAlias, assert_never

from nsa_dsl.cost import Model, order_candidates
from nsa_dsl.launch import CARDS, LaunchShape, Pin, Tiles
from nsa_dsl.lower import lower
from nsa_dsl.passes import run_passes
from nsa_dsl.passes.differentiate import differentiate
from nsa_dsl.pattern import Choice, GivenIndices, GivenScores, Pattern
from nsa_dsl.schedule import ChooseStep, ChosenStep, Plan, StaticStep, plan_graph
from nsa_dsl.schedule_backward import BackwardPlan, ChosenKeysStep, QueriesStep, StaticKeysStep, plan_backward
from nsa_dsl.schedule_hopper import forward_choices
from nsa_dsl.work import Kernel

Stay: TypeAlias = Literal["rows", "cols"]

MOST = 8
"""Candidates of one kernel that are worth a card's time: about as many as there are neighbours a step away."""

_PLAIN = 2
"""How many of them are plain where the default is a Gluon kernel, which a plain one seldom beats."""

_MOST_REGISTERS = 180
"""Accumulators and scores that a thread may hold; more spill for sure, since operands and addresses come on top."""

_BARRIERS = 1024
"""Bytes of shared memory for a Gluon kernel's barriers, and what aligning its buffers costs."""


@dataclass(frozen=True, slots=True)
class Stand:
    """How a kernel runs by default. plain: its tiles; hopper: those of the Gluon kernel beside it; stay: the side that a program keeps;
    accumulated: features of the sums that it keeps for each row, or col, that stays; most_cols: more cols than this are never full;
    gradient: whether it computes gradients; joined: where a Gluon kernel does several kernels' work, the one that it is timed as and
    whose tiles it takes."""

    kernel: str
    plain: Tiles
    hopper: Tiles | None
    stay: Stay
    accumulated: int
    most_cols: int = 256
    fixed_rows: bool = False
    gradient: bool = False
    joined: str = ""

    @property
    def pin(self) -> Pin:
        """The default as a pin."""
        return Pin(self.plain) if self.hopper is None else Pin(self.hopper, True)


def find_stands(pattern: Pattern, shape: LaunchShape, *, backward: bool) -> dict[str, Stand]:
    """Every kernel of the pattern whose tiles can be pinned, by its name. Raises NotSupported."""
    graph = run_passes(lower(pattern))
    found = list(_forward_stands(plan_graph(pattern, graph, shape), shape))
    if backward:
        found += _backward_stands(plan_backward(pattern, differentiate(graph), shape), shape)
    return {each.kernel: each for each in found}


def _forward_stands(plan: Plan, shape: LaunchShape) -> Iterator[Stand]:
    _, pad_v = shape.padded
    for step in plan.steps:
        match step:
            case StaticStep(branch=branch):
                yield Stand(f"attend_{branch.name}", step.tiles, step.hopper, "rows", pad_v)
            case ChosenStep(branch=branch):
                name, block = f"attend_{branch.name}", _largest_block(branch.choices)
                yield Stand(name, step.tiles, None, "rows", pad_v, block, fixed_rows=True)
                if step.one_list is not None:
                    yield Stand(f"{name}_union", step.one_list.union, None, "rows", pad_v, block)
            case ChooseStep(choice=choice):
                if not isinstance(choice.score, GivenScores | GivenIndices):
                    yield Stand(f"score_{choice.name}", step.tiles, None, "cols" if step.slots_once else "rows", 0)


def _backward_stands(plan: BackwardPlan, shape: LaunchShape) -> Iterator[Stand]:
    pad_qk, pad_v = shape.padded
    first = ""
    for step in plan.steps:
        match step:
            case QueriesStep(attend=StaticStep() as attend):
                name = f"attend_{attend.branch.name}_queries"
                if not step.joined:
                    first = name if step.others else ""
                yield Stand(name, attend.tiles, step.hopper, "rows", pad_qk, gradient=True, joined=first)
            case QueriesStep(attend=ChosenStep() as attend):
                name, block = f"attend_{attend.branch.name}", _largest_block(attend.branch.choices)
                yield Stand(f"{name}_queries", attend.tiles, None, "rows", pad_qk, block, fixed_rows=True, gradient=True)
                if attend.one_list is not None:
                    yield Stand(f"{name}_union_queries", attend.one_list.union_queries, None, "rows", pad_qk, block, gradient=True)
            case StaticKeysStep(branch=branch):
                yield Stand(f"attend_{branch.name}_keys", step.tiles, step.hopper, "cols", pad_qk + pad_v, gradient=True)
            case ChosenKeysStep(attend=attend, place=place):
                choice = attend.branch.choices[place]
                yield Stand(f"chosen_keys_{choice.name}", step.tiles, None, "cols", pad_qk + pad_v, max(16, choice.block), gradient=True)


def _largest_block(choices: tuple[Choice, ...]) -> int:
    return max(16, *(each.block for each in choices))


def candidates(stand: Stand, shape: LaunchShape, kernel: Kernel | None = None, model: Model | None = None) -> tuple[Pin, ...]:
    """What to try instead of the default: the nearest MOST, the nearest first. kernel, model: the work, and what is known of the card;
    with both, those as near as each other are tried in the order of what is expected of them. What is joined stays so: the time of a part
    alone says nothing."""
    if stand.joined not in ("", stand.kernel):
        return ()
    found: dict[Pin, int] = {}
    if stand.hopper is not None:
        starts = {stand.hopper}
        if stand.stay == "rows" and not stand.gradient:
            starts.update(Tiles(*each) for each in forward_choices(shape.dim_qk, shape.dim_v))
        for tiles in (made for start in starts for made in _variants(start, stand, warps=(start.warps,), one_side=True)):
            # A ring of one place would wait for itself.
            if tiles.stages > 1 and hopper_bytes(tiles, stand, shape) <= CARDS[shape.card].shared_memory:
                found[Pin(tiles, True)] = _distance(tiles, stand.hopper)
    off = None if stand.hopper is None else False
    for tiles in _variants(stand.plain, stand, warps=(stand.plain.warps // 2, stand.plain.warps, stand.plain.warps * 2)):
        if _fits(tiles, stand.stay, shape) and _registers(tiles, stand) <= _MOST_REGISTERS:
            found[Pin(tiles, off)] = _distance(tiles, stand.plain)
    found.pop(stand.pin, None)
    ordered = tuple(found) if kernel is None or model is None else order_candidates(kernel, tuple(found), model)
    ordered = tuple(sorted(ordered, key=lambda each: found[each]))
    if stand.hopper is None:
        return ordered[:MOST]
    gluon, plain = (tuple(each for each in ordered if bool(each.hopper) == wanted) for wanted in (True, False))
    return gluon[:MOST] if stand.joined else (*gluon[: MOST - _PLAIN], *plain[:_PLAIN])


def _variants(tiles: Tiles, stand: Stand, warps: tuple[int, ...], one_side: bool = False) -> Iterator[Tiles]:
    """Neighbours in all directions. one_side: only the side that comes and goes may change its size."""
    rows = (tiles.rows,) if stand.fixed_rows or (one_side and stand.stay == "rows") else (tiles.rows // 2, tiles.rows, tiles.rows * 2)
    cols = (tiles.cols,) if one_side and stand.stay == "cols" else (tiles.cols // 2, tiles.cols, tiles.cols * 2)
    for each in product(rows, cols, warps, range(tiles.stages - 1, tiles.stages + 2)):
        made = Tiles(*each)
        if 16 <= made.rows <= 256 and 16 <= made.cols <= stand.most_cols and 1 <= made.warps <= 12 and 1 <= made.stages <= 5:
            yield made


def _distance(tiles: Tiles, start: Tiles) -> int:
    """How many steps lie between two tiles."""

    def steps(one: int, other: int) -> int:
        return abs(one.bit_length() - other.bit_length())

    return (
        steps(tiles.rows, start.rows) + steps(tiles.cols, start.cols) + steps(tiles.warps, start.warps) + abs(tiles.stages - start.stages)
    )


def _fits(tiles: Tiles, stay: Stay, shape: LaunchShape) -> bool:
    """Whether the operands have room in shared memory."""
    dims = sum(shape.padded)
    moving, staying = (tiles.cols, tiles.rows) if stay == "rows" else (tiles.rows, tiles.cols)
    return (tiles.stages * moving + staying) * dims * shape.element_bytes <= CARDS[shape.card].shared_memory


def hopper_bytes(tiles: Tiles, stand: Stand, shape: LaunchShape) -> int:
    """Shared memory of a Gluon kernel for Hopper, as its template allocates it, in bytes and at most _BARRIERS more than it takes."""
    dim_qk, dim_v = shape.dim_qk, shape.dim_v
    dims = dim_qk + dim_v
    match stand.stay, stand.gradient:
        case "rows", False:
            # A warp has 16 rows, and again those of another head, unless features beyond 128, which have buffers of their own, leave no
            # room; outputs leave through the queries' place if they are as wide.
            rows = 16 * tiles.warps * (2 if dim_qk <= 128 else 1)
            numbers = rows * (dim_qk if min(dim_qk, 128) == dim_v else dims) + tiles.stages * tiles.cols * dims
            extra = 0
        case "rows", True:
            # The sums, in float32, are turned over on their way out, at most 128 features at a time.
            numbers, extra = (tiles.rows + tiles.stages * tiles.cols) * dims, 4 * tiles.rows * min(dim_qk, 128)
        case _:
            # With every row come its log-sum-exp and its delta.
            numbers, extra = (tiles.cols + tiles.stages * tiles.rows) * dims, 4 * 2 * tiles.stages * tiles.rows
    return numbers * shape.element_bytes + extra + _BARRIERS


def _registers(tiles: Tiles, stand: Stand) -> int:
    """Numbers of 32 bits that a thread holds of scores and sums."""
    match stand.stay:
        case "rows":
            kept = tiles.rows * stand.accumulated
        case "cols":
            kept = tiles.cols * stand.accumulated
        case _:
            assert_never(stand.stay)
    return (tiles.rows * tiles.cols + kept) // (32 * tiles.warps)
