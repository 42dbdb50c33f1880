"""From the gradient graph to a plan of the backward pass: which kernels run, in which order, with which tiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias, assert_never

from nsa_dsl.graph import (
    BlockGraph,
    CombineGradNode,
    CompressGradNode,
    GradientNode,
    KeyGradNode,
    Node,
    Part,
    QueryGradNode,
)
from nsa_dsl.launch import CARDS, LaunchShape, Tiles, first_that_fits, hopper_tiles, on_hopper, pinned, plain_tiles, tile_override
from nsa_dsl.lift import key_positions
from nsa_dsl.pattern import Branch, Compress, Pattern
from nsa_dsl.relation import EMPTY, Chosen, Condition, conjunction, rewrite, transposed
from nsa_dsl.schedule import (
    AttendStep,
    ChosenStep,
    StaticStep,
    chosen_tiles,
    monotone,
    plan_attend,
    producer_of,
)
from nsa_dsl.schedule_area import least_area
from nsa_dsl.schedule_chosen import parts
from nsa_dsl.schedule_hopper import keys_fit, keys_sizes, queries_fit, queries_sizes


@dataclass(frozen=True, slots=True)
class RowsStep:
    """Row weights and deltas of all branches, and the gates' gradient. branches: names of Attend nodes in the order of the gates."""

    kind: Literal["gate", "mix", "merge", "single"]
    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SinksStep:
    """The gradient of a branch's learned sinks."""

    branch: str


@dataclass(frozen=True, slots=True)
class QueriesStep:
    """One branch's share of the queries' gradient. attend: the branch as its forward runs, with tiles of this pass; hopper: tiles of
    this pass's Gluon kernel beside the plain one, None where there is none; others: branches of the steps that follow, whose work this
    step's Gluon kernel does, too; joined: this is one of those steps."""

    attend: AttendStep
    hopper: Tiles | None = None
    others: tuple[StaticStep, ...] = ()
    joined: bool = False


@dataclass(frozen=True, slots=True)
class StaticKeysStep:
    """The gradients of a branch's keys and values over a static relation. walked: the relation whose query tiles are visited;
    seen: the pairs that count, which may ask for choices; keys, values: the nodes they are the gradients of; hopper: as in
    QueriesStep."""

    branch: Branch
    keys: str
    values: str
    walked: Condition
    seen: Condition
    tiles: Tiles
    hopper: Tiles | None = None


@dataclass(frozen=True, slots=True)
class ChosenKeysStep:
    """The gradients of a branch's keys and values from the pairs that its choice number `place` adds. slopes: tiles of the kernel that
    makes the queries' gradient from the slopes of this one, where they may be kept; its rows are the heads of a group."""

    attend: ChosenStep
    place: int
    tiles: Tiles
    slopes: Tiles


@dataclass(frozen=True, slots=True)
class CompressGradStep:
    """From slots' gradients to tokens'. node: the Compress node; source: the keys or values that were compressed."""

    node: str
    source: str
    memory: Compress
    part: Part


BackwardStep: TypeAlias = RowsStep | SinksStep | QueriesStep | StaticKeysStep | ChosenKeysStep | CompressGradStep


@dataclass(frozen=True, slots=True)
class BackwardPlan:
    """Steps in an order in which every input exists before it is read."""

    pattern: Pattern
    shape: LaunchShape
    steps: tuple[BackwardStep, ...]


def plan_backward(pattern: Pattern, graph: BlockGraph, shape: LaunchShape) -> BackwardPlan:
    """The plan of a differentiated graph. Raises NotSupported for a construct that has no kernel yet."""
    steps = (step for name in graph.order() for step in _plan_node(graph, name, graph.node(name), shape))
    # Queries' gradients first, those of one list last among them: a step for keys that keeps slopes adds to what the others have stored.
    return BackwardPlan(pattern, shape, _join(sorted(steps, key=_turn), shape))


def _join(steps: Iterable[BackwardStep], shape: LaunchShape) -> tuple[BackwardStep, ...]:
    """The steps, those next to each other joined whose Gluon kernels may be one: then queries and the output's gradient are read once,
    and the sum is stored once. A kernel whose tiles nobody decided takes those of the first."""
    made: list[BackwardStep] = []
    first = 0
    for each in steps:
        step = each
        match made[first:], step:
            case (
                [QueriesStep(StaticStep(branch=one), Tiles() as tiles) as lead, *_],
                QueriesStep(StaticStep(branch=other) as attend, Tiles() as own),
            ) if one.scale == other.scale and (own == tiles or _takes(shape, attend, tiles)):
                made[first] = replace(lead, others=(*lead.others, attend))
                step = replace(step, hopper=tiles, joined=True)
            case _:
                first = len(made)
        made.append(step)
    return tuple(made)


def _turn(step: BackwardStep) -> int:
    match step:
        case RowsStep() | SinksStep():
            return 0
        case QueriesStep(attend):
            return 2 if isinstance(attend, ChosenStep) and attend.one_list is not None else 1
        case StaticKeysStep() | ChosenKeysStep() | CompressGradStep():
            return 3
        case _:
            assert_never(step)


def _plan_node(graph: BlockGraph, name: str, node: Node, shape: LaunchShape) -> tuple[BackwardStep, ...]:
    match node:
        case CombineGradNode(kind, branches):
            return (RowsStep(kind, branches),)
        case GradientNode("sinks", owner) if owner is not None:
            return (SinksStep(owner),)
        case QueryGradNode(branch, _, may_where, slot_where):
            attend = plan_attend(graph, name, branch, may_where if slot_where is None else slot_where, shape)
            hopper = _hopper_queries(attend, shape)
            tiles = plain_tiles(shape, f"attend_{branch.name}_queries", _query_tiles(attend, shape, beside=hopper is not None))
            return (QueriesStep(replace(attend, tiles=tiles), hopper),)
        case KeyGradNode(branch, _, may_where, slot_where):
            # The graph holds the transposed relation; tiles are made from either side of the same one.
            relation = transposed(may_where if slot_where is None else slot_where)
            return _plan_keys(plan_attend(graph, name, branch, relation, shape), shape)
        case CompressGradNode(memory, part):
            made = name.removeprefix("grad.")
            return (CompressGradStep(made, producer_of(graph, made, part), memory, part),)
        case _:
            return ()


def _plan_keys(attend: AttendStep, shape: LaunchShape) -> tuple[BackwardStep, ...]:
    """With F what is visible when nothing is chosen: first F, then for every choice the pairs that neither F nor an earlier one has."""
    name, usual = f"attend_{attend.branch.name}_keys", key_tiles(shape)
    if isinstance(attend, StaticStep):
        relation, hopper = attend.relation, _hopper_keys(attend, shape)
        tiles = least_area(usual, key_tiles(shape, most=64), relation, key_positions(attend.branch), "queries")
        return (StaticKeysStep(attend.branch, attend.keys, attend.values, relation, relation, plain_tiles(shape, name, tiles), hopper),)
    atoms = {each.name: Chosen(each.name) for each in attend.branch.choices}
    nothing = rewrite(attend.where, {}, dict.fromkeys(atoms.values(), EMPTY))
    steps: list[BackwardStep] = []
    if nothing != EMPTY:
        growing = all(monotone(attend.where, each) for each in atoms)
        seen = nothing if growing else conjunction(nothing, attend.where)
        steps.append(StaticKeysStep(attend.branch, attend.keys, attend.values, nothing, seen, plain_tiles(shape, name, usual)))
    for place, choice in enumerate(attend.branch.choices):
        listed = plain_tiles(shape, f"chosen_keys_{choice.name}", list_tiles(shape, choice.block))
        slopes = plain_tiles(shape, f"slopes_{attend.branch.name}_queries", slope_tiles(shape, choice.block))
        steps.append(ChosenKeysStep(attend, place, listed, slopes))
    return tuple(steps)


# The tiles measured fastest on an H100 at head dimension 128, then smaller ones for less shared memory.
_QUERIES_16_BIT = (
    Tiles(128, 64, 8, 3),
    Tiles(128, 64, 8, 2),
    Tiles(64, 64, 4, 2),
    Tiles(64, 32, 8, 2),
    Tiles(32, 32, 4, 2),
    Tiles(32, 32, 4, 1),
)
_QUERIES_32_BIT = (Tiles(32, 16, 4, 2), Tiles(16, 16, 4, 1))
_KEYS_16_BIT = (
    Tiles(32, 128, 8, 3),
    Tiles(32, 64, 4, 3),
    Tiles(32, 64, 8, 3),
    Tiles(32, 64, 8, 2),
    Tiles(32, 32, 4, 2),
    Tiles(32, 32, 8, 2),
    Tiles(16, 32, 4, 2),
    Tiles(16, 32, 4, 1),
)
_KEYS_32_BIT = (Tiles(16, 32, 8, 2), Tiles(16, 16, 8, 2), Tiles(16, 16, 8, 1))

_ACCUMULATORS, _ACCUMULATORS_WIDE, _ACCUMULATORS_PARTED = 128, 100, 160
"""Most registers a thread may hold of the two gradients that a program of keys adds up; the second where head dimensions above 128 take
registers for rows, too; the third where features are parted and the card has products of warp groups, which take 64 keys or none: a step
then reads some twenty offsets again from local memory, beside its 26 products."""


def _takes(shape: LaunchShape, attend: StaticStep, tiles: Tiles) -> bool:
    """Whether a step of queries may have the tiles of another one: nobody decided its own, and these fit it as well."""
    kernel = f"attend_{attend.branch.name}_queries"
    return pinned(shape, kernel) is None and queries_fit(attend.branch, attend.relation, tiles)


def _hopper_queries(attend: AttendStep, shape: LaunchShape) -> Tiles | None:
    """Tiles of the Gluon kernel of the queries' gradient."""
    if not isinstance(attend, StaticStep) or not on_hopper(shape):
        return None
    sizes = queries_sizes(attend.branch, attend.relation, shape.dim_qk, shape.dim_v)
    fits = partial(queries_fit, attend.branch, attend.relation)
    return hopper_tiles(shape, f"attend_{attend.branch.name}_queries", None if sizes is None else Tiles(*sizes), fits)


def _hopper_keys(attend: StaticStep, shape: LaunchShape) -> Tiles | None:
    """Tiles of the Gluon kernel of the keys' and values' gradients."""
    if not on_hopper(shape):
        return None
    sizes = keys_sizes(attend.branch, attend.relation, shape.dim_qk, shape.dim_v)
    fits = partial(keys_fit, attend.branch, attend.relation)
    return hopper_tiles(shape, f"attend_{attend.branch.name}_keys", None if sizes is None else Tiles(*sizes), fits)


def _query_tiles(attend: AttendStep, shape: LaunchShape, *, beside: bool = False) -> Tiles:
    """Tiles of the queries' gradient. beside: a Gluon kernel stands beside the plain one, which then has a loop over tiles around it: for
    head dimensions above 128 its registers are enough for half the rows."""
    if isinstance(attend, ChosenStep):
        return chosen_tiles(shape)
    dims = sum(shape.padded)
    ladder = _QUERIES_32_BIT if shape.element_bytes > 2 else _QUERIES_16_BIT
    pairs = CARDS[shape.card].static_pairs if max(shape.padded) <= 128 else (32 if beside else 64) * 32
    fitting = tuple(each for each in ladder if each.rows * each.cols <= pairs)
    usual = tile_override(shape, first_that_fits(fitting, shape, dims, dims))
    return least_area(usual, tile_override(shape, Tiles(64, 64, 4, 2)), attend.relation, key_positions(attend.branch))


def key_tiles(shape: LaunchShape, most: int = 128) -> Tiles:
    """Tiles of the keys' and values' gradients: rows come and go, cols stay. most: keys a program may have."""
    dims = sum(shape.padded)
    ladder = _KEYS_32_BIT if shape.element_bytes > 2 else _KEYS_16_BIT
    room = 32 * (_ACCUMULATORS if max(shape.padded) <= 128 else _ACCUMULATORS_WIDE)
    # A step holds scores and slopes of its pairs at once: half as many as the forward.
    pairs = CARDS[shape.card].static_pairs // 2
    fitting = tuple(
        each for each in ladder if each.cols <= most and each.cols * dims <= room * each.warps and each.rows * each.cols <= pairs
    )
    fitting = fitting or ladder[-1:]
    return tile_override(shape, first_that_fits(fitting, shape, dims, dims, stay="cols"))


def list_tiles(shape: LaunchShape, block: int) -> Tiles:
    """Tiles of the keys' and values' gradients of chosen blocks of `block` keys."""
    tiles = key_tiles(shape, most=64 if max(shape.padded) <= 128 else 32)
    first, last = parts(shape.dim_qk)
    wider = Tiles(32, 64, 4, 2)
    held = wider.cols * (first + last + shape.padded[1]) // (32 * wider.warps)
    fast = shape.card == "sm_90" and shape.element_bytes == 2
    if first and fast and tiles.cols < wider.cols and held <= _ACCUMULATORS_PARTED:
        tiles = tile_override(shape, wider)
    return replace(tiles, cols=max(16, min(tiles.cols, 1 << (block - 1).bit_length())))


def slope_tiles(shape: LaunchShape, block: int) -> Tiles:
    """Tiles of the queries' gradient from the slopes of chosen blocks of `block` keys: few operations a block, so many loads in flight."""
    ladder = tuple(Tiles(64, block, 4, stages) for stages in (6, 5, 3, 2, 1)) if shape.element_bytes == 2 else (Tiles(64, block, 8, 1),)
    return first_that_fits(ladder, shape, sum(parts(shape.dim_qk)) + 16, 0)
