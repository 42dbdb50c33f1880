"""What each kernel of a plan has to do at one length: exact numbers of tiles, programs, operations and bytes. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from nsa_dsl.codegen.limits_backward import PROGRAMS_WANTED
from nsa_dsl.count import count_pairs, count_tiles
from nsa_dsl.integer_set import TooComplex
from nsa_dsl.launch import LaunchShape, Tiles, power_of_two
from nsa_dsl.lift import key_positions
from nsa_dsl.lower import lower
from nsa_dsl.passes import run_passes
from nsa_dsl.passes.differentiate import differentiate
from nsa_dsl.pattern import Branch, Choice, Compress, Pattern
from nsa_dsl.relation import Condition, Term, evaluate
from nsa_dsl.schedule import ChooseStep, ChosenStep, StaticStep, plan_graph
from nsa_dsl.schedule_backward import ChosenKeysStep, QueriesStep, StaticKeysStep, plan_backward
from nsa_dsl.schedule_chosen import BY_BLOCKS_GROUP, BY_BLOCKS_LISTS, FULL_GROUP, MERGED
from nsa_dsl.tiles import Side

Kind: TypeAlias = Literal[
    "static",
    "static_queries",
    "static_keys",
    "chosen",
    "union",
    "by_blocks",
    "merged",
    "chosen_queries",
    "union_queries",
    "chosen_keys",
    "score",
]
Engine: TypeAlias = Literal["triton", "gluon"]
_Integers: TypeAlias = npt.NDArray[np.int64]

KEPT = 3
"""Blocks that neighbouring queries have in common whatever they choose: the first, their own and the one before, as in NSA."""

ALIKE: Mapping[str, float] = {"random": 0.0, "clustered": 10 / 13, "identical": 1.0}
"""The part of their other blocks that neighbours choose alike, by how much they agree."""


@dataclass(frozen=True, slots=True)
class Call:
    """Sizes of a call. sharing: how much neighbouring queries agree on the blocks they choose."""

    tokens: int
    heads: int
    kv_heads: int
    batch: int = 1
    sharing: str = "random"


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What one kernel does. full, partial: tiles that each outer tile visits; copies: programs for each outer tile; repeats: how often a
    program does so (the heads of a group where keys stay); pairs, operations: of a tile; loaded: bytes of a tile that come and go;
    visible: pairs that count, over all heads; moved: bytes that have to come from or go to memory once."""

    kernel: str
    kind: Kind
    engine: Engine
    tiles: Tiles
    full: _Integers
    partial: _Integers
    copies: int
    repeats: int
    operations: int
    loaded: int
    visible: int
    moved: int

    @property
    def useful(self) -> float:
        """Operations on visible pairs."""
        return self.visible * self.operations / (self.tiles.rows * self.tiles.cols)


Recipe: TypeAlias = Callable[[Tiles, Engine], Work]
"""The work of a kernel with these tiles."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel as planned. tiles, engine: those of the schedule; recipe: its work with any."""

    name: str
    tiles: Tiles
    engine: Engine
    recipe: Recipe

    def work(self) -> Work:
        """As planned."""
        return self.recipe(self.tiles, self.engine)


def kernels(pattern: Pattern, shape: LaunchShape, call: Call, *, backward: bool = True) -> dict[str, Kernel]:
    """Every kernel whose time follows from its tiles, forward first. Raises NotSupported."""
    graph = run_passes(lower(pattern))
    found = [*_forward(shape, call, plan_graph(pattern, graph, shape).steps)]
    if backward:
        found += _backward(shape, call, plan_backward(pattern, differentiate(graph), shape).steps)
    return {each.name: each for each in found}


def _forward(shape: LaunchShape, call: Call, steps: tuple[object, ...]) -> Iterator[Kernel]:
    counting = _Counting(shape, call)
    for step in steps:
        match step:
            case StaticStep(branch=branch, relation=relation):
                name = f"attend_{branch.name}"
                yield counting.kernel(name, step.tiles, step.hopper, counting.static(name, "static", branch, relation))
            case ChosenStep(branch=branch):
                name = f"attend_{branch.name}"
                yield counting.kernel(name, step.tiles, None, counting.chosen(name, "chosen", branch))
                if step.one_list is not None:
                    yield counting.kernel(f"{name}_union", step.one_list.union, None, counting.chosen(f"{name}_union", "union", branch))
                    if step.one_list.by_blocks is not None and counting.may_go_by_blocks():
                        parts, merged = f"{name}_by_blocks", f"{name}_merged"
                        yield counting.kernel(parts, step.one_list.by_blocks, None, counting.chosen(parts, "by_blocks", branch))
                        yield counting.kernel(merged, Tiles(*MERGED), None, counting.merged(merged, branch))
            case ChooseStep(choice=choice, scored_branch=branch, relation=relation) if branch is not None and relation is not None:
                name = f"score_{choice.name}"
                yield counting.kernel(name, step.tiles, None, counting.score(name, choice, branch, relation, step.slots_once))


def _backward(shape: LaunchShape, call: Call, steps: tuple[object, ...]) -> Iterator[Kernel]:
    counting = _Counting(shape, call)
    for step in steps:
        match step:
            case QueriesStep(attend=StaticStep(branch=branch, relation=relation, tiles=tiles)):
                name = f"attend_{branch.name}_queries"
                yield counting.kernel(name, tiles, step.hopper, counting.static(name, "static_queries", branch, relation))
            case QueriesStep(attend=ChosenStep(branch=branch, tiles=tiles) as attend):
                name = f"attend_{branch.name}"
                yield counting.kernel(f"{name}_queries", tiles, None, counting.chosen(f"{name}_queries", "chosen_queries", branch))
                if attend.one_list is not None:
                    union = f"{name}_union_queries"
                    yield counting.kernel(union, attend.one_list.union_queries, None, counting.chosen(union, "union_queries", branch))
            case StaticKeysStep(branch=branch, walked=relation):
                name = f"attend_{branch.name}_keys"
                yield counting.kernel(name, step.tiles, step.hopper, counting.static(name, "static_keys", branch, relation))
            case ChosenKeysStep(attend=attend, place=place):
                name = f"chosen_keys_{attend.branch.choices[place].name}"
                yield counting.kernel(name, step.tiles, None, counting.chosen(name, "chosen_keys", attend.branch))


@dataclass(frozen=True, slots=True)
class _Counting:
    """Makes recipes for one shape and one call."""

    shape: LaunchShape
    call: Call

    def kernel(self, name: str, plain: Tiles, hopper: Tiles | None, recipe: Recipe) -> Kernel:
        return Kernel(name, plain, "triton", recipe) if hopper is None else Kernel(name, hopper, "gluon", recipe)

    def static(self, name: str, kind: Kind, branch: Branch, relation: Condition) -> Recipe:
        keys = key_positions(branch)
        over: Side = "queries" if kind == "static_keys" else "keys"
        call, shape = self.call, self.shape
        dims, extent = shape.dim_qk + shape.dim_v, _extent(keys, call)

        def work(tiles: Tiles, engine: Engine) -> Work:
            full, partial = visits(relation, tiles.rows, tiles.cols, call, keys, over)
            stays = call.kv_heads if over == "queries" else call.heads
            moving = tiles.rows if over == "queries" else tiles.cols
            split = _split(len(full) * call.batch * stays, call.heads // stays)
            return Work(
                name, kind, engine, tiles, full, partial, call.batch * stays * split, call.heads // stays // split,
                tiles.rows * tiles.cols * operations_of_pair(kind, shape), moving * dims * shape.element_bytes,
                call.batch * _visible(relation, call, keys), self._moved(kind, extent),
            )  # fmt: skip

        return work

    def chosen(self, name: str, kind: Kind, branch: Branch) -> Recipe:
        """Blocks of lists, as many as a query may choose; pairs beyond the diagonal count as visible."""
        call, shape, choice = self.call, self.shape, branch.choices[0]
        taken = blocks_taken(choice, call)
        group = call.heads // call.kv_heads if choice.share == "group" else 1
        lists = call.heads // group
        dims = shape.dim_qk + shape.dim_v

        def work(tiles: Tiles, engine: Engine) -> Work:
            steps = -(-choice.block // tiles.cols)
            rows, cols, warps, total = max(16, group), min(tiles.cols, choice.block), tiles.warps, taken
            moving = cols * dims
            if kind in ("union", "union_queries"):
                rows = max(tiles.rows, 16)
                if group < FULL_GROUP:
                    rows, warps = 16, 2
                total = union_sizes(choice, call, tile_queries(group, choice.count or 1, rows))
            if kind in ("chosen_keys", "by_blocks"):
                # Rows that come and go are those that chose a block: as many as blocks were chosen.
                rows, per_block = tiles.rows, -(-int(taken.sum()) // max(1, len(taken) // choice.block))
                total = np.full(max(1, call.tokens // choice.block), -(-per_block * group // tiles.rows), np.int64)
                moving = rows * (dims if kind == "chosen_keys" else shape.dim_qk)
            return Work(
                name, kind, engine, Tiles(rows, cols, warps, tiles.stages), total * steps, np.zeros_like(total), call.batch * lists, 1,
                rows * cols * operations_of_pair(kind, shape), moving * shape.element_bytes,
                call.batch * call.heads * int(taken.sum()) * choice.block,
                self._moved(kind, call.tokens) + (self._parts(taken) if kind == "by_blocks" else 0),
            )  # fmt: skip

        return work

    def may_go_by_blocks(self) -> bool:
        """Whether the host may launch kernels by blocks."""
        call = self.call
        return call.heads // call.kv_heads <= BY_BLOCKS_GROUP and call.batch * call.kv_heads * call.tokens >= BY_BLOCKS_LISTS

    def merged(self, name: str, branch: Branch) -> Recipe:
        """The parts of softmaxes become one each: a tile is some rows and one part of each, and such parts are the pairs."""
        call, shape, choice = self.call, self.shape, branch.choices[0]
        taken = blocks_taken(choice, call)

        def work(tiles: Tiles, engine: Engine) -> Work:
            steps = np.maximum.reduceat(taken, np.arange(0, len(taken), tiles.rows))
            return Work(
                name, "merged", engine, tiles, steps, np.zeros_like(steps), call.batch * call.heads, 1,
                tiles.rows * tiles.cols * operations_of_pair("merged", shape), tiles.rows * self._part_bytes(),
                call.batch * call.heads * int(taken.sum()), self._parts(taken),
            )  # fmt: skip

        return work

    def _parts(self, taken: _Integers) -> int:
        """Bytes of the parts of all query rows."""
        return self.call.batch * self.call.heads * int(taken.sum()) * self._part_bytes()

    def _part_bytes(self) -> int:
        """A row and its log-sum-exp in float32."""
        return 4 * (self.shape.dim_v + 1)

    def score(self, name: str, choice: Choice, branch: Branch, relation: Condition, once: bool) -> Recipe:
        memory = branch.memory
        keys = key_positions(branch)
        call, shape = self.call, self.shape
        taps = 1
        if isinstance(memory, Compress) and not once:
            taps = (choice.block + memory.block) // memory.stride - 1

        def work(tiles: Tiles, engine: Engine) -> Work:
            in_block = 1 if once or not isinstance(memory, Compress) else max(1, choice.block // memory.stride)
            full, partial = visits(relation, tiles.rows, tiles.cols * in_block, call, keys, "keys")
            return Work(
                name, "score", engine, tiles, full, partial, call.batch * call.kv_heads, call.heads // call.kv_heads,
                tiles.rows * tiles.cols * taps * 2 * shape.dim_qk, tiles.rows * shape.dim_qk * shape.element_bytes,
                call.batch * _visible(relation, call, keys), call.batch * call.heads * call.tokens * shape.dim_qk * shape.element_bytes,
            )  # fmt: skip

        return work

    def _moved(self, kind: Kind, extent: int) -> int:
        """Queries, keys and values once, results once."""
        call, shape = self.call, self.shape
        rows, keys = call.batch * call.heads * call.tokens, call.batch * call.kv_heads * extent
        dims = shape.dim_qk + shape.dim_v
        gradients = 4 * keys * dims if kind.endswith("keys") else 4 * rows * shape.dim_qk if kind.endswith("queries") else 0
        return (rows * dims + keys * dims) * shape.element_bytes + gradients


def _split(programs: int, group: int) -> int:
    """Into how many parts the heads of a group are dealt where there are few programs: as generated modules do it."""
    split = 1
    while group % (2 * split) == 0 and programs * split < PROGRAMS_WANTED:
        split *= 2
    return split


def operations_of_pair(kind: Kind, shape: LaunchShape) -> int:
    """Floating-point operations of the products for one pair of a query and a key."""
    match kind:
        case "static" | "chosen" | "union" | "by_blocks":
            return 2 * (shape.dim_qk + shape.dim_v)
        case "merged":
            return 2 * shape.dim_v
        case "static_queries" | "chosen_queries" | "union_queries":
            return 2 * (2 * shape.dim_qk + shape.dim_v)
        case "static_keys" | "chosen_keys":
            return 4 * (shape.dim_qk + shape.dim_v)
        case "score":
            return 2 * shape.dim_qk


def visits(relation: Condition, rows: int, cols: int, call: Call, keys: Term, over: Side) -> tuple[_Integers, _Integers]:
    """How many full and partial tiles each outer tile visits, exactly, averaged over heads and rounded up where they differ."""
    full, partial, _ = count_tiles(relation, rows, cols, call.tokens, call.heads, call.kv_heads, keys, over)
    return full, partial


@lru_cache(maxsize=64)
def _visible(relation: Condition, call: Call, keys: Term) -> int:
    """Pairs that the relation allows, over all heads: exact."""
    try:
        return count_pairs(relation, call.tokens, heads=call.heads, kv_heads=call.kv_heads, keys=keys)
    except TooComplex:
        # Pair by pair, however long it takes.
        full, partial = visits(relation, 1, 1, call, keys, "keys")
        return call.heads * int((full + partial).sum())


def blocks_taken(choice: Choice, call: Call) -> _Integers:
    """How many blocks each query takes at most: those that begin at or before it."""
    begun = np.arange(call.tokens, dtype=np.int64) // choice.block + 1
    return np.minimum(begun, choice.count or call.tokens)


def tile_queries(group: int, width: int, rows: int) -> int:
    """Neighbouring queries whose blocks are walked together by so many rows: as generated modules count them."""
    padded, queries = power_of_two(width), 1
    while 2 * queries * group <= rows and queries < 8 and 2 * queries * padded <= 128:
        queries *= 2
    return queries


def union_sizes(choice: Choice, call: Call, queries: int) -> _Integers:
    """How many different blocks so many neighbouring queries choose together, for each run of them: the expected number where they draw
    what they do not choose alike, of those that begin at or before the last of them."""
    last = np.minimum(np.arange(queries - 1, call.tokens + queries - 1, queries, dtype=np.int64), call.tokens - 1)
    begun, width = last // choice.block + 1, choice.count or call.tokens
    kept = min(KEPT, width)
    # What they choose alike may be among what they have in common anyway.
    alike = kept + round(ALIKE[call.sharing] * (width - kept)) * np.maximum(0, begun - kept) / begun
    rest = np.maximum(1.0, begun - alike)
    drawn = rest * (1 - (1 - np.minimum(1.0, (width - alike) / rest)) ** queries)
    sizes: _Integers = np.minimum(begun, np.rint(alike + drawn)).astype(np.int64)
    return sizes


def _extent(keys: Term, call: Call) -> int:
    return max(0, int(evaluate(keys, {"N": call.tokens})))
