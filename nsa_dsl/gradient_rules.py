"""Which gradient graphs are legal: what must stand beside a forward graph, node by node and edge by edge.

Each node of the transposed graph is held to the forward graph: what it may read, and over which relation. So a gradient that is
missing, or gathers over another relation than the transpose of the forward's, is a sentence here and never a wrong number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from typing import TypeAlias, assert_never

from nsa_dsl.graph_nodes import (
    AttendNode,
    BackwardNode,
    ChoiceEdge,
    CombineGradNode,
    CombineNode,
    CompressGradNode,
    CompressNode,
    CotangentNode,
    Edge,
    Edges,
    GradientNode,
    InputNode,
    KeyGradNode,
    Nodes,
    OutputNode,
    PointwiseEdge,
    QueryGradNode,
    StaticEdge,
)
from nsa_dsl.inverse import inverse_choice, inverse_static, shared_slot
from nsa_dsl.relation import transposed

Reads: TypeAlias = dict[str | BackwardNode, Edge]
"""What a node must read over which edge: forward nodes by name, others by what they are."""

_POINTWISE = PointwiseEdge()


def gradients_complete(nodes: Nodes, edges: Edges) -> Iterator[str]:
    """Everything that the output depends on has its gradient, once; nothing else has one."""
    expected = _Expected(nodes, edges).reads
    made = Counter(node for node in nodes.values() if isinstance(node, BackwardNode))
    for wanted in expected:
        if made[wanted] != 1:
            yield f"must have one {_describe(wanted)}, has {made[wanted]}"
    for name, node in nodes.items():
        if isinstance(node, BackwardNode) and node not in expected:
            yield f"{name}: is not the {_describe(node)} of this forward graph"


def gradients_read_what_they_need(nodes: Nodes, edges: Edges) -> Iterator[str]:
    """Each node of the transposed graph reads what the forward graph says it must, over the edges that it says."""
    given: dict[str, dict[str, Edge]] = {name: {} for name, node in nodes.items() if isinstance(node, BackwardNode)}
    for (producer, consumer), edge in edges.items():
        if consumer in given:
            given[consumer][producer] = edge
    if not given:
        return
    expected = _Expected(nodes, edges).reads
    names = {node: name for name, node in nodes.items() if isinstance(node, BackwardNode) and node in expected}
    strange = given.keys() - names.values()  # which nodes there must be is the other rule
    for node, name in names.items():
        reads = given[name]
        wanted = {(each if isinstance(each, str) else names.get(each)): edge for each, edge in expected[node].items()}
        wanted.pop(None, None)
        yield from (f"{name}: must read {each}" for each in wanted if each not in reads)
        yield from (f"{name}: must not read {each}" for each in reads if each not in wanted and each not in strange)
        for each, edge in wanted.items():
            if each in reads and reads[each] != edge:
                yield f"{each} -> {name}: {_difference(reads[each], edge)}"


def _difference(edge: Edge, wanted: Edge) -> str:
    if type(edge) is not type(wanted):
        return f"must be {type(wanted).__name__}, is {type(edge).__name__}"
    wrong = [each.name for each in fields(edge) if getattr(edge, each.name) != getattr(wanted, each.name)]
    return f"its {' and '.join(wrong)} must be what follows from the forward graph"


def _describe(node: BackwardNode) -> str:
    """What the node is, in the words of its name."""
    match node:
        case CotangentNode(role, owner):
            return ".".join(each for each in ("cotangent", role, owner) if each is not None)
        case CombineGradNode(kind, branches):
            return f"grad.combine by {kind} of {', '.join(branches)}"
        case QueryGradNode(branch):
            return f"grad.attend.{branch.name}.queries over the forward's relations"
        case KeyGradNode(branch):
            return f"grad.attend.{branch.name}.keys over the transposed relations"
        case CompressGradNode(memory, part, branch):
            return ".".join(each for each in ("grad.compress", memory.name, part, branch) if each is not None)
        case GradientNode(role, owner, part):
            return ".".join(each for each in ("gradient", role, owner, part) if each is not None)
        case _:
            assert_never(node)


class _Expected:
    """The transposed graph as a forward graph demands it: `reads` says for each node what it must read.

    Asked of each node in turn, what reads it in the forward graph and how; the pass goes the other way, from what is read.
    """

    def __init__(self, nodes: Nodes, edges: Edges) -> None:
        self._nodes = nodes
        self._edges = {ends: edge for ends, edge in edges.items() if not isinstance(nodes[ends[1]], BackwardNode)}
        self._alive = self._differentiable()
        self._combine = next(((name, node) for name in self._alive if isinstance(node := nodes[name], CombineNode)), None)
        self.reads: dict[BackwardNode, Reads] = {}
        for name in self._alive:
            match nodes[name]:
                case OutputNode():
                    self.reads[CotangentNode("out", None)] = {}
                case CombineNode() as node:
                    self._expect_rows(name, node)
                case AttendNode() as node:
                    self._expect_walks(name, node)
                case CompressNode() as node:
                    self._expect_slots(name, node)
                case InputNode(("q" | "k" | "v" | "gates" | "sinks") as role, owner):
                    self.reads[GradientNode(role, owner, None)] = self._sum_over_readers(name)
                case _:
                    pass  # weights: with the slots that they make

    def _differentiable(self) -> tuple[str, ...]:
        """What the output depends on, readers first; but for choices and what only they need, and for what a module outside reads."""
        found = [name for name, node in self._nodes.items() if isinstance(node, OutputNode)]
        for reader in found:  # grows on the way
            node = self._nodes[reader]
            if isinstance(node, CompressNode) and node.memory.by == "mlp":
                continue
            for producer in self._producers(reader):
                if isinstance(self._nodes[producer], InputNode | CompressNode | AttendNode | CombineNode) and producer not in found:
                    found.append(producer)
        return tuple(found)

    def _producers(self, reader: str) -> dict[str, Edge]:
        return {ends[0]: edge for ends, edge in self._edges.items() if ends[1] == reader}

    def _readers(self, producer: str) -> dict[str, Edge]:
        """The differentiable nodes that read it."""
        return {ends[1]: edge for ends, edge in self._edges.items() if ends[0] == producer and ends[1] in self._alive}

    def _expect_rows(self, name: str, node: CombineNode) -> None:
        reads: Reads = {CotangentNode("out", None): _POINTWISE}
        for producer in self._producers(name):
            source = self._nodes[producer]
            if isinstance(source, AttendNode):
                cotangent = CotangentNode("lse", "merge" if node.kind == "merge" else source.branch.name)
                self.reads[cotangent] = {}
                reads[cotangent] = reads[name if node.kind == "merge" else producer] = _POINTWISE
                sinks = (each for each in self._producers(producer) if _is_input(self._nodes, each, "sinks"))
                reads.update(dict.fromkeys(sinks, _POINTWISE))
            else:
                reads[producer] = _POINTWISE
        self.reads[_rows(node)] = reads

    def _expect_walks(self, name: str, node: AttendNode) -> None:
        static = [edge for edge in self._producers(name).values() if isinstance(edge, StaticEdge)]
        if not static or self._combine is None:
            return  # the forward graph is not legal, which other rules say
        combine, combined = self._combine
        forward = {each: edge for each, edge in self._producers(name).items() if not _is_input(self._nodes, each, "sinks")}
        per_row = (CotangentNode("out", None), _rows(combined), combine if combined.kind == "merge" else name)
        by_query: Reads = dict.fromkeys(per_row, _POINTWISE)
        by_key: Reads = dict.fromkeys(per_row, inverse_static(static[0]))
        for producer, edge in forward.items():
            by_query[producer] = edge
            if isinstance(edge, ChoiceEdge):
                by_key[producer] = inverse_choice(edge)
            elif _is_input(self._nodes, producer, "q"):
                by_key[producer] = inverse_static(static[0])
            else:
                by_key[producer] = _POINTWISE
        self.reads[_query_gradient(node)] = by_query
        self.reads[_key_gradient(node)] = by_key

    def _expect_slots(self, name: str, node: CompressNode) -> None:
        from_readers = [_key_gradient(each) for reader in self._readers(name) if isinstance(each := self._nodes[reader], AttendNode)]
        if node.memory.by == "mlp":
            owner = node.memory.name if node.branch is None else f"{node.memory.name}.{node.branch}"
            self.reads[GradientNode("slots", owner, node.part)] = dict.fromkeys(from_readers, _POINTWISE)
            return
        made = CompressGradNode(node.memory, node.part, node.branch)
        reads: Reads = {}
        for producer, edge in self._producers(name).items():
            if isinstance(edge, StaticEdge):
                reads.update(dict.fromkeys(from_readers, inverse_static(edge)))
                if node.memory.by == "max":
                    reads[name] = inverse_static(edge)
                    reads[producer] = StaticEdge(shared_slot(node.memory), 1, 1, "keys")
                elif node.memory.by == "weighted":
                    reads[producer] = _POINTWISE
            else:
                reads[producer] = edge
                self.reads.setdefault(GradientNode("weights", node.memory.name, node.part), {})[made] = _POINTWISE
        self.reads[made] = reads

    def _sum_over_readers(self, name: str) -> Reads:
        result: Reads = {}
        for reader in self._readers(name):
            match self._nodes[reader]:
                case AttendNode() as node if _is_input(self._nodes, name, "q"):
                    result[_query_gradient(node)] = _POINTWISE
                case AttendNode() as node if not _is_input(self._nodes, name, "sinks"):
                    result[_key_gradient(node)] = _POINTWISE
                case CompressNode(memory, part, branch) if memory.by != "mlp":
                    result[CompressGradNode(memory, part, branch)] = _POINTWISE
                case AttendNode() | CombineNode() if self._combine is not None:  # its sinks, its gates
                    result[_rows(self._combine[1])] = _POINTWISE
                case _:
                    pass
        return result


def _is_input(nodes: Nodes, name: str, role: str) -> bool:
    node = nodes[name]
    return isinstance(node, InputNode) and node.role == role


def _rows(node: CombineNode) -> CombineGradNode:
    return CombineGradNode(node.kind, node.branches)


def _query_gradient(node: AttendNode) -> QueryGradNode:
    return QueryGradNode(node.branch, node.static_where, node.may_where, node.slot_where)


def _key_gradient(node: AttendNode) -> KeyGradNode:
    slots = None if node.slot_where is None else transposed(node.slot_where)
    return KeyGradNode(node.branch, transposed(node.static_where), transposed(node.may_where), slots)
