"""Pattern -> block-dependency graph. The graph says the same as the pattern, with every dependence made explicit.

Names of nodes: `input.q`, `input.k.selected`, `compress.summary.keys`, `attend.selected`, `importance.selected`,
`select.selected`, `combine`, `output`. Every branch is lowered, dead ones included; memories nobody attends to are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from nsa_dsl.choice_bounds import candidate_blocks, choose_static, kept_blocks, may_choose, tokens_of
from nsa_dsl.graph import BlockGraph
from nsa_dsl.graph_nodes import (
    AttendNode,
    ChoiceEdge,
    CombineNode,
    CompressNode,
    Edge,
    Ends,
    ImportanceNode,
    InputNode,
    Node,
    OutputNode,
    Part,
    PointwiseEdge,
    Role,
    SelectNode,
    StaticEdge,
)
from nsa_dsl.pattern import (
    Branch,
    BranchScore,
    Choice,
    Compress,
    GivenIndices,
    GivenScores,
    IndexScore,
    Pattern,
    PooledScore,
    Tokens,
)
from nsa_dsl.relation import Compare, Condition, Const, FloorDiv, SameDocument, Scale, Sum, Var, conjunction, walk

_ROLE_OF_PART: Mapping[Part, Role] = {"keys": "k", "values": "v"}


def lower(pattern: Pattern) -> BlockGraph:
    """The block-dependency graph of a pattern, before any pass.

    Slots are not derived yet: an edge from a compressed memory to its branch still relates token pairs (both units are 1).
    """
    return _Lowering(pattern).graph()


class _Lowering:
    """Collects nodes and edges while it walks one pattern."""

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self._nodes: dict[str, Node] = {}
        self._edges: dict[Ends, Edge] = {}
        self._choices = {choice.name: choice for branch in pattern.branches for choice in branch.choices}

    def graph(self) -> BlockGraph:
        for branch in self._pattern.branches:
            self._add_attend(branch)
        # Choices come second: they may name branches and choices that stand further down.
        for branch in self._pattern.branches:
            for choice in branch.choices:
                self._add_select(branch, choice)
        self._add_output()
        return BlockGraph(self._pattern.name, self._nodes, self._edges)

    def _add_attend(self, branch: Branch) -> None:
        name = f"attend.{branch.name}"
        may = {each.name: tokens_of(self._candidates(each), each.block) for each in branch.choices}
        node = AttendNode(branch, choose_static(branch.where, may), may_choose(branch.where, may))
        self._nodes[name] = node
        self._connect(self._input("q"), name, PointwiseEdge())
        for part in _ROLE_OF_PART:
            source = self._compressed(branch, branch.memory, part) if isinstance(branch.memory, Compress) else self._tokens(branch, part)
            self._connect(source, name, StaticEdge(node.may_where, 1, 1, "pairs"))
        if branch.sink:
            self._connect(self._input("sinks", branch.name), name, PointwiseEdge())
        if any(isinstance(each, SameDocument) for each in walk(branch.where)):
            self._connect(self._input("cu_seqlens"), name, PointwiseEdge())

    def _add_select(self, branch: Branch, choice: Choice) -> None:
        name = f"select.{choice.name}"
        self._nodes[name] = SelectNode(choice)
        match choice.score:
            case GivenScores():
                self._connect(self._input("scores", choice.name), name, PointwiseEdge())
            case GivenIndices():
                self._connect(self._input("indices", choice.name), name, PointwiseEdge())
            case BranchScore() | PooledScore() | IndexScore():
                self._connect(self._importance(branch, choice), name, PointwiseEdge())
            case _:
                assert_never(choice.score)
        if choice.among is not None:
            self._connect(f"select.{choice.among}", name, self._choice_edge(self._choices[choice.among]))
        self._connect(name, f"attend.{branch.name}", self._choice_edge(choice))

    def _importance(self, branch: Branch, choice: Choice) -> str:
        name = f"importance.{choice.name}"
        self._nodes[name] = ImportanceNode(choice.score, choice.block, choice.share, choice.reduce, choice.every, choice.queries)
        match choice.score:
            case BranchScore(scored):
                memory = self._pattern.branch(scored).memory
                relation = _overlap(choice.block, memory)
                unit = memory.stride if isinstance(memory, Compress) else 1
                self._connect(f"attend.{scored}", name, StaticEdge(relation, choice.block, unit, "keys"))
            case PooledScore():
                self._connect(self._input("q"), name, _run_of_queries(choice))
                whole = StaticEdge(_overlap(choice.block, Tokens()), choice.block, 1, "keys")
                self._connect(self._tokens(branch, "keys"), name, whole)
            case IndexScore():
                self._connect(self._input("indexer", choice.name), name, PointwiseEdge())
            case GivenScores() | GivenIndices():
                raise ValueError(f"{choice.name}: given scores and indices are not computed")
            case _:
                assert_never(choice.score)
        return name

    def _add_output(self) -> None:
        output = self._pattern.output
        branches = tuple(f"attend.{each}" for each in output.branches)
        self._nodes["combine"] = CombineNode(output.kind, branches)
        for each in branches:
            self._connect(each, "combine", PointwiseEdge())
        if output.kind in ("gate", "mix"):
            self._connect(self._input("gates"), "combine", PointwiseEdge())
        self._nodes["output"] = OutputNode()
        self._connect("combine", "output", PointwiseEdge())

    def _compressed(self, branch: Branch, memory: Compress, part: Part) -> str:
        owner = branch.name if self._pattern.kv_per_branch else None
        name = ".".join(each for each in ("compress", memory.name, part, owner) if each is not None)
        if name not in self._nodes:
            self._nodes[name] = CompressNode(memory, part, owner)
            self._connect(self._tokens(branch, part), name, StaticEdge(_covered(memory), memory.stride, 1, "keys"))
            if memory.by in ("weighted", "mlp"):
                role: Role = "weights" if memory.by == "weighted" else "compressors"
                self._connect(self._input(role, memory.name), name, PointwiseEdge())
        return name

    def _tokens(self, branch: Branch, part: Part) -> str:
        return self._input(_ROLE_OF_PART[part], branch.name if self._pattern.kv_per_branch else None)

    def _input(self, role: Role, owner: str | None = None) -> str:
        name = f"input.{role}" if owner is None else f"input.{role}.{owner}"
        self._nodes[name] = InputNode(role, owner)
        return name

    def _choice_edge(self, choice: Choice) -> ChoiceEdge:
        return ChoiceEdge(choice.name, self._candidates(choice), kept_blocks(choice), choice.block)

    def _candidates(self, choice: Choice) -> Condition:
        return candidate_blocks(choice, self._choices)

    def _connect(self, producer: str, consumer: str, edge: Edge) -> None:
        self._edges[producer, consumer] = edge


def _covered(memory: Compress) -> Condition:
    """Slot i summarises token j."""
    start = Scale(memory.stride, Var("i"))
    return conjunction(Compare("<=", start, Var("j")), Compare("<", Var("j"), Sum((start, Const(memory.block)))))


def _overlap(block: int, memory: Tokens | Compress) -> Condition:
    """Key block i shares a token with slot (or token) j."""
    if isinstance(memory, Tokens):
        return Compare("==", FloorDiv(Var("j"), block), Var("i"))
    start = Scale(memory.stride, Var("j"))
    return conjunction(
        Compare("<", start, Sum((Scale(block, Var("i")), Const(block)))),
        Compare(">", Sum((start, Const(memory.block))), Scale(block, Var("i"))),
    )


def _run_of_queries(choice: Choice) -> Edge:
    """Which queries j the query unit i is scored from: a run's first, or all of a tile."""
    if choice.queries > 1:
        return StaticEdge(Compare("==", FloorDiv(Var("j"), choice.queries), Var("i")), choice.queries, 1, "queries")
    if choice.every > 1:
        return StaticEdge(Compare("==", Var("j"), Scale(choice.every, Var("i"))), choice.every, 1, "queries")
    return PointwiseEdge()
