"""From the block-dependency graph to a plan: which kernels run, in which order, with which tiles.

The user's text never chooses a tile. Tile sizes follow from the head dimensions, the element size and the shared memory of
the card, so one pattern has one plan per launch shape. Nothing here knows Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

from nsa_dsl.graph import (
    AttendNode,
    BlockGraph,
    CombineGradNode,
    CombineNode,
    CompressGradNode,
    CompressNode,
    CotangentNode,
    GradientNode,
    ImportanceNode,
    InputNode,
    KeyGradNode,
    Node,
    OutputNode,
    Part,
    QueryGradNode,
    SelectNode,
)
from nsa_dsl.pattern import Branch, Choice, Compress, IndexScore, NotSupported, Pattern
from nsa_dsl.relation import (
    Chosen,
    Compare,
    Condition,
    Const,
    FloorDiv,
    Not,
    Scale,
    Sum,
    Var,
    choices,
    conjunction,
    disjunction,
    rewrite,
    symbols,
    walk,
)

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
    """What tiles depend on. dim_qk, dim_v: head dimensions; rows, cols: tile sizes to use whatever the cost (None: choose)."""

    dim_qk: int = 128
    dim_v: int = 128
    dtype: Dtype = "bf16"
    card: str = "sm_90"
    rows: int | None = None
    cols: int | None = None

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
class CompressStep:
    """Compress the keys or values `source` to the slots `node`. owner: the branch whose they are, None when all share them."""

    node: str
    source: str
    memory: Compress
    part: Part
    owner: str | None


@dataclass(frozen=True, slots=True)
class StaticStep:
    """Attention over a static relation. relation: over tokens, or over slots when the branch's memory is Compress."""

    node: str
    branch: Branch
    keys: str
    values: str
    relation: Condition
    tiles: Tiles


@dataclass(frozen=True, slots=True)
class ChosenStep:
    """Attention over chosen blocks and, in the same softmax, a static part. where: over tokens, with Chosen atoms.
    run: queries a program; per_head: a program serves one query head, because lists or relation differ by head."""

    node: str
    branch: Branch
    keys: str
    values: str
    where: Condition
    run: int
    per_head: bool
    tiles: Tiles


@dataclass(frozen=True, slots=True)
class ChooseStep:
    """Scores, then the best blocks. keys: tokens, or the slots of the branch `scored` whose probabilities count.
    relation: which slots a query sees."""

    node: str
    choice: Choice
    keys: str | None
    scored: str | None
    scored_branch: Branch | None
    relation: Condition | None
    tiles: Tiles


@dataclass(frozen=True, slots=True)
class CombineStep:
    """The output from its branches. branches: nodes in the order of the gates."""

    kind: Literal["gate", "mix", "merge", "single"]
    branches: tuple[str, ...]


AttendStep: TypeAlias = StaticStep | ChosenStep
Step: TypeAlias = CompressStep | StaticStep | ChosenStep | ChooseStep | CombineStep


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in an order in which every input exists before it is read."""

    pattern: Pattern
    shape: LaunchShape
    steps: tuple[Step, ...]


def plan_graph(pattern: Pattern, graph: BlockGraph, shape: LaunchShape) -> Plan:
    """The plan of a graph that has been through the passes. Raises NotSupported for a construct that has no kernel yet."""
    steps = (_plan_node(graph, name, graph.node(name), shape) for name in graph.order())
    return Plan(pattern, shape, tuple(each for each in steps if each is not None))


def _plan_node(graph: BlockGraph, name: str, node: Node, shape: LaunchShape) -> Step | None:
    match node:
        case CompressNode():
            return CompressStep(name, producer_of(graph, name, "keys", "values"), node.memory, node.part, node.branch)
        case AttendNode():
            relation = node.slot_where if isinstance(node.branch.memory, Compress) else node.branch.where
            return plan_attend(graph, name, node.branch, relation, shape)
        case SelectNode():
            return _plan_choice(graph, name, node.choice, shape)
        case CombineNode():
            return CombineStep(node.kind, node.branches)
        case InputNode() | ImportanceNode() | OutputNode():
            return None
        case CotangentNode() | CombineGradNode() | QueryGradNode() | KeyGradNode() | CompressGradNode() | GradientNode():
            return None
        case _:
            assert_never(node)


def producer_of(graph: BlockGraph, name: str, *parts: Part) -> str:
    """The node whose keys or values this one reads."""
    for producer, node, _ in graph.incoming(name):
        match node:
            case CompressNode(_, part, _) if part in parts:
                return producer
            case InputNode("k", _) if "keys" in parts:
                return producer
            case InputNode("v", _) if "values" in parts:
                return producer
    raise KeyError(f"{name} reads no {' or '.join(parts)}")


def plan_attend(graph: BlockGraph, name: str, branch: Branch, relation: Condition | None, shape: LaunchShape) -> AttendStep:
    """How the branch of node `name`, which reads keys and values, walks them. relation: what it sees, over tokens or slots, where no
    choice decides. Raises NotSupported."""
    if branch.skip is not None:
        raise NotSupported(f"branch {branch.name}: `skip` has no kernel yet; leave it out, it changes speed only")
    keys, values = producer_of(graph, name, "keys"), producer_of(graph, name, "values")
    if not branch.choices:
        if relation is None:
            raise NotSupported(f"branch {branch.name}: slot visibility was not derived; run the passes first")
        return StaticStep(f"attend.{branch.name}", branch, keys, values, relation, static_tiles(shape, relation))
    where = _with_extra_blocks(branch)
    run = _common_run([each.every for each in branch.choices])
    per_head = "h" in symbols(where) or any(each.share == "head" for each in branch.choices)
    return ChosenStep(f"attend.{branch.name}", branch, keys, values, where, run, per_head, chosen_tiles(shape))


def _common_run(runs: Sequence[int]) -> int:
    """The longest run of queries within which every choice stays the same: the greatest common divisor."""
    result = runs[0]
    for each in runs[1:]:
        while each:
            result, each = each, result % each
    return result


def _with_extra_blocks(branch: Branch) -> Condition:
    """The branch's condition with the blocks of `keep_extra` made a static part: they stand outside the choice's count."""
    atoms: dict[Condition, Condition] = {}
    for choice in branch.choices:
        if choice.keep_extra is not None:
            leader = Scale(choice.every, FloorDiv(Var("i"), choice.every)) if choice.every > 1 else Var("i")
            key_block = FloorDiv(Var("j"), choice.block)
            n_blocks = FloorDiv(Sum((Var("N"), Const(choice.block - 1))), choice.block)
            extra = rewrite(choice.keep_extra, {"i": FloorDiv(leader, choice.block), "j": key_block, "N": n_blocks})
            begun = Compare("<=", Scale(choice.block, key_block), leader)
            atoms[Chosen(choice.name)] = disjunction(Chosen(choice.name), conjunction(extra, begun))
    return rewrite(branch.where, {}, atoms)


def _plan_choice(graph: BlockGraph, name: str, choice: Choice, shape: LaunchShape) -> Step:
    if choice.rule != "top":
        raise NotSupported(f"choice {choice.name}: `{choice.rule}` has no kernel yet; `top` has")
    if choice.queries > 1:
        raise NotSupported(
            f"choice {choice.name}: `queries = {choice.queries}` has no kernel yet; leave it out, each query then chooses alone"
        )
    if choice.among is not None:
        raise NotSupported(f"choice {choice.name}: `among` has no kernel yet")
    if isinstance(choice.score, IndexScore):
        raise NotSupported(f"choice {choice.name}: `by = index(...)` has no kernel yet; pass the indexer's scores with `by = scores`")
    importance = next((each for each, node, _ in graph.incoming(name) if isinstance(node, ImportanceNode)), None)
    if importance is None:
        return ChooseStep(name, choice, None, None, None, None, score_tiles(shape, pooled=False))
    for producer, node, _ in graph.incoming(importance):
        if isinstance(node, AttendNode):
            return ChooseStep(
                name, choice, producer_of(graph, producer, "keys"), producer, node.branch, node.slot_where, score_tiles(shape, pooled=False)
            )
    return ChooseStep(name, choice, producer_of(graph, importance, "keys"), None, None, None, score_tiles(shape, pooled=True))


def monotone(where: Condition, chosen: str) -> bool:
    """Whether taking more blocks can only let a query see more: no difference subtracts the choice."""
    return not any(isinstance(each, Not) and chosen in choices(each) for each in walk(where))


def power_of_two(size: int, least: int = 16) -> int:
    """The least power of two that is at least `size` and `least`."""
    return max(least, 1 << (size - 1).bit_length())


_STATIC_16_BIT = (
    Tiles(128, 64, 8, 3),
    Tiles(128, 64, 8, 2),
    Tiles(128, 32, 8, 2),
    Tiles(64, 64, 8, 2),
    Tiles(64, 32, 8, 2),
    Tiles(32, 32, 4, 2),
    Tiles(32, 32, 4, 1),
)
# Float32 products run without matrix units and hold their operands in registers: few keys a step.
_STATIC_32_BIT = (Tiles(64, 16, 8, 2), Tiles(32, 16, 4, 2), Tiles(16, 16, 4, 1))
_CHOSEN_32_BIT = (Tiles(16, 16, 4, 2), Tiles(16, 16, 4, 1))
_CHOSEN_16_BIT = (Tiles(16, 64, 2, 3), Tiles(16, 64, 2, 2), Tiles(16, 32, 2, 2), Tiles(16, 32, 2, 1), Tiles(16, 16, 2, 1))
_SCORE_16_BIT = (Tiles(64, 64, 4, 3), Tiles(64, 64, 8, 2), Tiles(32, 32, 4, 2), Tiles(16, 16, 4, 1))
_SCORE_32_BIT = (Tiles(32, 32, 8, 1), Tiles(32, 16, 4, 1), Tiles(16, 16, 4, 1))

_LONG_MASK = 40
"""Nodes of a condition from which on a mask takes so many registers that a query tile gets half its rows."""


def static_tiles(shape: LaunchShape, relation: Condition) -> Tiles:
    """Tiles of attention over a static relation."""
    pad_qk, pad_v = shape.padded
    widest = max(pad_qk, pad_v)
    rows = 64 if widest > 128 or sum(1 for _ in walk(relation)) > _LONG_MASK else 128
    pairs = min(CARDS[shape.card].static_pairs, 64 * 32 if widest > 128 else 128 * 64)
    stages = 3 if widest <= 64 else 2
    ladder: Sequence[Tiles] = _STATIC_32_BIT if shape.element_bytes > 2 else _STATIC_16_BIT
    fitting = tuple(each for each in ladder if each.rows <= rows and each.rows * each.cols <= pairs and each.stages <= stages)
    return tile_override(shape, first_that_fits(fitting, shape, pad_qk + pad_v, pad_qk + pad_v))


def chosen_tiles(shape: LaunchShape) -> Tiles:
    """Tiles of attention over chosen blocks: rows are the heads of a group, at least 16; cols the keys a step."""
    pad_qk, pad_v = shape.padded
    ladder = _CHOSEN_32_BIT if shape.element_bytes > 2 else _CHOSEN_16_BIT
    return tile_override(shape, first_that_fits(ladder, shape, pad_qk + pad_v, 4 * (pad_qk + pad_v)), rows=16)


def score_tiles(shape: LaunchShape, pooled: bool) -> Tiles:
    """Tiles of the score kernels: rows are query units, cols key blocks. pooled: both operands are float32."""
    pad_qk, _ = shape.padded
    # Four warps hold 64 x 64 scores in registers only where products read their operands from shared memory: on Hopper and later,
    # from 128 features on.
    few_warps = shape.card in ("sm_90", "sm_100") and pad_qk > 64
    ladder = _SCORE_32_BIT if pooled or shape.element_bytes > 2 else _SCORE_16_BIT[0 if few_warps else 1 :]
    return tile_override(shape, first_that_fits(ladder, shape, pad_qk * (2 if pooled else 1), pad_qk, 4 if pooled else None))


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
