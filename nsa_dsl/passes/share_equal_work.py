"""Compute equal things once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import TypeVar, assert_never

from nsa_dsl.graph import (
    AttendNode,
    BackwardNode,
    BlockGraph,
    CombineNode,
    CompressNode,
    Edge,
    Ends,
    ForwardNode,
    ImportanceNode,
    InputNode,
    Node,
    OutputNode,
    SelectNode,
)
from nsa_dsl.pattern import BranchScore, Choice, Compress

MemoryType = TypeVar("MemoryType")


def share_equal_work(graph: BlockGraph) -> BlockGraph:
    """The graph with equal nodes merged: same kind, same contents but for names, same producers over the same edges. The node
    that comes first in `graph.order()` does the work of all its equals, and consumers name it.

        k ─▶ compress.s ─▶ attend.a ─▶ select.a ─▶ ...        k ─▶ compress.s ─▶ attend.a ─▶ select.a ─▶ ...
        k ─▶ compress.t ─▶ attend.b ─▶ select.b ─▶ ...   ──▶                          └────▶ select.b ─▶ ...

    Choices keep apart, however equal: the caller knows each by its name, may fix it and reads it back.

    Equal means written equally: relations that differ in form but not in meaning are not found, neither is partial overlap (a
    choice of 8 blocks inside a choice of 16). Whether two different branches share one kernel is the schedule's business.
    Raises ValueError for a gradient graph: what is shared is differentiated once.
    """
    return _Sharing(graph).graph()


class _Sharing:
    """Visits producers before consumers, so that equal producers already have one name when a consumer is compared."""

    def __init__(self, graph: BlockGraph) -> None:
        self._source = graph
        self._nodes: dict[str, Node] = {}
        self._edges: dict[Ends, Edge] = {}
        self._worker: dict[str, str] = {}
        self._choices: dict[str, Choice] = {}

    def graph(self) -> BlockGraph:
        seen: dict[Hashable, str] = {}
        for name in self._source.order():
            source = self._source.node(name)
            if isinstance(source, BackwardNode):
                raise ValueError(f"{self._source.pattern}: share equal work first, then differentiate")
            incoming = {self._worker[producer]: edge for producer, _, edge in self._source.incoming(name)}
            node = self._rename_node(source, [self._nodes[producer] for producer in incoming])
            worker = seen.setdefault((_nameless(node), frozenset(incoming.items())), name)
            self._worker[name] = worker
            if worker == name:
                self._nodes[name] = node
                self._edges.update({(producer, name): edge for producer, edge in incoming.items()})
            if isinstance(node, SelectNode):
                self._choices[node.choice.name] = node.choice
        return BlockGraph(self._source.pattern, self._nodes, self._edges, (*self._source.passes, "share_equal_work"))

    def _rename_node(self, node: ForwardNode, producers: list[Node]) -> ForwardNode:
        """The node with every name it holds replaced by the worker's."""
        match node:
            case InputNode() | CompressNode() | OutputNode():
                return node
            case AttendNode(branch):
                memory = next((each.memory for each in producers if isinstance(each, CompressNode)), branch.memory)
                made = tuple(self._choices[each.name] for each in branch.choices)
                return replace(node, branch=replace(branch, memory=memory, choices=made))
            case ImportanceNode(score):
                scored = (BranchScore(each.branch.name) for each in producers if isinstance(each, AttendNode))
                return replace(node, score=next(scored, score))
            case SelectNode(choice):
                score = next((each.score for each in producers if isinstance(each, ImportanceNode)), choice.score)
                return SelectNode(replace(choice, score=score))
            case CombineNode(_, branches):
                return replace(node, branches=tuple(self._worker[each] for each in branches))
            case _:
                assert_never(node)


def _nameless(node: ForwardNode) -> Hashable:
    """The node without names of its own: what it computes, given its producers."""
    match node:
        case InputNode() | ImportanceNode() | SelectNode() | CombineNode() | OutputNode():
            return node
        case CompressNode(memory):
            return replace(node, memory=_nameless_memory(memory), branch=None)
        case AttendNode(branch):
            return replace(node, branch=replace(branch, name="", memory=_nameless_memory(branch.memory)))
        case _:
            assert_never(node)


def _nameless_memory(memory: MemoryType) -> MemoryType:
    return replace(memory, name="") if isinstance(memory, Compress) else memory
