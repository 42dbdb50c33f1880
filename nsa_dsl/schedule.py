"""From the block-dependency graph to a plan: which kernels run, in which order, with which tiles.

The user's text never chooses a tile. Tile sizes follow from the head dimensions, the element size and the shared memory of
the card, so one pattern has one plan per launch shape. Nothing here knows Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from nsa_dsl.launch import (
    CARDS,
    LaunchShape,
    Tiles,
    first_that_fits,
    hopper_tiles,
    on_hopper,
    plain_tiles,
    tile_override,
)
from nsa_dsl.lift import key_positions
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
    Term,
    Var,
    choices,
    conjunction,
    disjunction,
    rewrite,
    symbols,
    walk,
)
from nsa_dsl.schedule_area import least_area
from nsa_dsl.schedule_chosen import (
    BY_BLOCKS_TILE,
    QUERIES_WIDE,
    UNION,
    UNION_32_BIT,
    UNION_PARTED,
    UNION_QUERIES,
    UNION_QUERIES_WIDE,
    parts,
    takes_one_list,
)
from nsa_dsl.schedule_hopper import forward_fits, forward_sizes


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
    """Attention over a static relation. relation: over tokens, or over slots when the branch's memory is Compress. hopper: tiles of
    the Gluon kernel beside the plain one, None where there is none."""

    node: str
    branch: Branch
    keys: str
    values: str
    relation: Condition
    tiles: Tiles
    hopper: Tiles | None = None


@dataclass(frozen=True, slots=True)
class OneListTiles:
    """Tiles of the kernels that stand beside the forward for one query at a time: over unions of neighbouring queries, the gradients of
    queries, over them and alone, and by blocks (cols: a whole block), None where blocks do not fit."""

    union: Tiles
    union_queries: Tiles
    queries: Tiles
    by_blocks: Tiles | None


@dataclass(frozen=True, slots=True)
class ChosenStep:
    """Attention over chosen blocks and, in the same softmax, a static part. where: over tokens, with Chosen atoms.
    run: queries a program; per_head: a program serves one query head, because lists or relation differ by head; one_list: tiles of the
    kernels for branches in which every query sees the blocks of one list and nothing else; first: how many features of queries and keys
    make a product of their own where kernels of chosen blocks part them, 0 where no kernel does."""

    node: str
    branch: Branch
    keys: str
    values: str
    where: Condition
    run: int
    per_head: bool
    tiles: Tiles
    one_list: OneListTiles | None = None
    first: int = 0


@dataclass(frozen=True, slots=True)
class ChooseStep:
    """Scores, then the best blocks. keys: tokens, or the slots of the branch `scored` whose probabilities count.
    relation: which slots a query sees. slots_once: each slot is scored once, for all blocks it touches, and the tiles' cols are slots;
    otherwise they are blocks."""

    node: str
    choice: Choice
    keys: str | None
    scored: str | None
    scored_branch: Branch | None
    relation: Condition | None
    tiles: Tiles
    slots_once: bool = False


@dataclass(frozen=True, slots=True)
class CombineStep:
    """The output from its branches. branches: nodes in the order of the gates; within: the branch whose kernels do this at their end, None
    where there is a kernel for it."""

    kind: Literal["gate", "mix", "merge", "single"]
    branches: tuple[str, ...]
    within: str | None = None


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
    return Plan(pattern, shape, _combine_at_the_end(graph, tuple(each for each in steps if each is not None)))


def _combine_at_the_end(graph: BlockGraph, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Put the last branch of one list that nothing else waits for before the output, whose other branches are then there: its kernels
    combine them with the rows that they have at hand, which saves a pass through memory."""
    combine = steps[-1]
    if not isinstance(combine, CombineStep) or combine.kind not in ("gate", "mix"):
        return steps
    awaited = {producer for producer, consumer in graph.edges if not isinstance(graph.node(consumer), CombineNode | OutputNode)}
    ends = [each for each in steps if isinstance(each, ChosenStep) and each.one_list is not None and each.node not in awaited]
    if not ends:
        return steps
    return (*(each for each in steps[:-1] if each is not ends[-1]), ends[-1], replace(combine, within=ends[-1].node))


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
        tiles = plain_tiles(shape, f"attend_{branch.name}", static_tiles(shape, relation, key_positions(branch)))
        sizes = forward_sizes(branch, relation, shape.dim_qk, shape.dim_v) if on_hopper(shape) else None
        fits = partial(forward_fits, branch, relation)
        hopper = hopper_tiles(shape, f"attend_{branch.name}", None if sizes is None else Tiles(*sizes), fits)
        return StaticStep(f"attend.{branch.name}", branch, keys, values, relation, tiles, hopper)
    where = _with_extra_blocks(branch)
    run = _common_run([each.every for each in branch.choices])
    per_head = "h" in symbols(where) or any(each.share == "head" for each in branch.choices)
    tiles = plain_tiles(shape, f"attend_{branch.name}", chosen_tiles(shape))
    one_list = _one_list_tiles(branch, shape) if takes_one_list(branch, where, per_head) else None
    return ChosenStep(f"attend.{branch.name}", branch, keys, values, where, run, per_head, tiles, one_list, parts(shape.dim_qk)[0])


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
    kernel = f"score_{choice.name}"
    tiles = plain_tiles(shape, kernel, score_tiles(shape, pooled=False))
    if importance is None:
        return ChooseStep(name, choice, None, None, None, None, tiles)
    for producer, node, _ in graph.incoming(importance):
        if isinstance(node, AttendNode):
            once = touches_two_blocks(choice, node.branch, node.slot_where)
            if once:
                tiles = plain_tiles(shape, kernel, slot_tiles(shape))
            return ChooseStep(name, choice, producer_of(graph, producer, "keys"), producer, node.branch, node.slot_where, tiles, once)
    tiles = plain_tiles(shape, kernel, score_tiles(shape, pooled=True))
    return ChooseStep(name, choice, producer_of(graph, importance, "keys"), None, None, None, tiles)


def touches_two_blocks(choice: Choice, branch: Branch, relation: Condition | None) -> bool:
    """Whether each slot of the scored branch can be scored once, for its own block and the next: strides divide blocks into a power of
    two of at most 16 slots, a block's last slot ends with the next block or earlier, and the heads that choose together see the same
    slots of one KV head and count by their sum."""
    memory = branch.memory
    if not isinstance(memory, Compress) or choice.share == "all" or choice.reduce == "max":
        return False
    in_block, rest = divmod(choice.block, memory.stride)
    if rest or in_block not in (1, 2, 4, 8, 16) or memory.block > choice.block + memory.stride:
        return False
    return relation is None or "h" not in symbols(relation)


def monotone(where: Condition, chosen: str) -> bool:
    """Whether taking more blocks can only let a query see more: no difference subtracts the choice."""
    return not any(isinstance(each, Not) and chosen in choices(each) for each in walk(where))


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
_SLOTS_16_BIT = (Tiles(64, 128, 4, 2), Tiles(64, 64, 4, 2), Tiles(32, 64, 4, 2), Tiles(32, 32, 4, 2), Tiles(16, 16, 4, 1))
_SCORE_32_BIT = (Tiles(32, 32, 8, 1), Tiles(32, 16, 4, 1), Tiles(16, 16, 4, 1))

_LONG_MASK = 40
"""Nodes of a condition from which on a mask takes so many registers that a query tile gets half its rows."""


def static_tiles(shape: LaunchShape, relation: Condition, keys: Term) -> Tiles:
    """Tiles of attention over a static relation. keys: the number of key positions."""
    pad_qk, pad_v = shape.padded
    widest = max(pad_qk, pad_v)
    rows = 64 if widest > 128 or sum(1 for _ in walk(relation)) > _LONG_MASK else 128
    pairs = min(CARDS[shape.card].static_pairs, 64 * 32 if widest > 128 else 128 * 64)
    stages = 3 if widest <= 64 else 2
    ladder: Sequence[Tiles] = _STATIC_32_BIT if shape.element_bytes > 2 else _STATIC_16_BIT
    fitting = tuple(each for each in ladder if each.rows <= rows and each.rows * each.cols <= pairs and each.stages <= stages)
    usual = tile_override(shape, first_that_fits(fitting, shape, pad_qk + pad_v, pad_qk + pad_v))
    return least_area(usual, tile_override(shape, Tiles(64, 64, 4, usual.stages)), relation, keys)


def chosen_tiles(shape: LaunchShape) -> Tiles:
    """Tiles of attention over chosen blocks: rows are the heads of a group, at least 16; cols the keys a step."""
    pad_qk, pad_v = shape.padded
    ladder: Sequence[Tiles] = _CHOSEN_32_BIT if shape.element_bytes > 2 else _CHOSEN_16_BIT
    if shape.dim_qk % 16 or shape.dim_v % 16:
        # Rows that are not loaded 16 bytes at a time take many registers for pointers.
        ladder = tuple(each for each in ladder if each.cols <= 32)
    return tile_override(shape, first_that_fits(ladder, shape, pad_qk + pad_v, 4 * (pad_qk + pad_v)), rows=16)


def _one_list_tiles(branch: Branch, shape: LaunchShape) -> OneListTiles:
    """Tiles of the kernels for branches of one list."""
    dims, block = sum(shape.padded), branch.choices[0].block
    exact, wide = shape.element_bytes > 2, max(shape.padded) > 128
    first, last = parts(shape.dim_qk)

    def fitting(name: str, ladder: Sequence[tuple[int, int, int, int]], dims: int = dims) -> Tiles:
        tiles = first_that_fits(tuple(Tiles(*each) for each in (UNION_32_BIT if exact else ladder)), shape, dims, dims)
        return plain_tiles(shape, f"attend_{branch.name}_{name}", tile_override(shape, tiles))

    def alone() -> Tiles:
        tiles = chosen_tiles(shape)
        if wide and not exact:
            tiles = first_that_fits(tuple(Tiles(*each) for each in QUERIES_WIDE), shape, dims, 4 * dims)
        return plain_tiles(shape, f"attend_{branch.name}_queries", tile_override(shape, tiles, rows=16))

    by_blocks = Tiles(16 if exact else BY_BLOCKS_TILE, block, 4, 2)
    fits = block & (block - 1) == 0 and by_blocks.rows * block <= (512 if exact else 64 * 128)
    moving, staying = 2 * by_blocks.rows * shape.padded[0], block * dims
    fits = fits and (moving + staying) * shape.element_bytes <= CARDS[shape.card].shared_memory
    return OneListTiles(
        fitting("union", UNION_PARTED if wide and first else UNION, first + last + shape.padded[1]),
        fitting("union_queries", UNION_QUERIES_WIDE if wide else UNION_QUERIES),
        alone(),
        plain_tiles(shape, f"attend_{branch.name}_by_blocks", by_blocks) if fits else None,
    )


def score_tiles(shape: LaunchShape, pooled: bool) -> Tiles:
    """Tiles of the score kernels: rows are query units, cols key blocks. pooled: both operands are float32."""
    pad_qk, _ = shape.padded
    # Four warps hold 64 x 64 scores in registers only where products read their operands from shared memory: on Hopper and later,
    # from 128 features on.
    few_warps = shape.card in ("sm_90", "sm_100") and pad_qk > 64
    ladder = _SCORE_32_BIT if pooled or shape.element_bytes > 2 else _SCORE_16_BIT[0 if few_warps else 1 :]
    return tile_override(shape, first_that_fits(ladder, shape, pad_qk * (2 if pooled else 1), pad_qk, 4 if pooled else None))


def slot_tiles(shape: LaunchShape) -> Tiles:
    """Tiles of the kernel that scores each slot once: rows are query units, cols slots. Keys stay, the heads' queries come and go."""
    pad_qk, _ = shape.padded
    ladder = _SCORE_32_BIT if shape.element_bytes > 2 else _SLOTS_16_BIT
    return tile_override(shape, first_that_fits(ladder, shape, pad_qk, pad_qk, stay="cols"))
