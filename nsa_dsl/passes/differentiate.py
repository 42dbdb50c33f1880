"""Add the transposed graph: from the derivatives that the caller gives to the gradient of every input."""

from __future__ import annotations

from typing import assert_never

from nsa_dsl.graph import (
    AttendNode,
    BackwardNode,
    BlockGraph,
    ChoiceEdge,
    CombineGradNode,
    CombineNode,
    CompressGradNode,
    CompressNode,
    CotangentNode,
    Edge,
    ForwardNode,
    GradientNode,
    GradientRole,
    ImportanceNode,
    InputNode,
    KeyGradNode,
    OutputNode,
    Part,
    PointwiseEdge,
    QueryGradNode,
    SelectNode,
    StaticEdge,
)
from nsa_dsl.inverse import inverse_choice, inverse_static, shared_slot
from nsa_dsl.pattern import Compress
from nsa_dsl.relation import transposed

_OUT = "cotangent.out"
_ROWS = "grad.combine"
_PARTS: tuple[Part, ...] = ("keys", "values")


def differentiate(graph: BlockGraph) -> BlockGraph:
    """The graph, whole, and its transpose: consumers before producers, each node hands a gradient to what it reads.

        q, k, v ─▶ attend.a ─▶ combine ─▶ output

        cotangent.out ─▶ grad.combine ─┬─(as forward: i query, j key)──▶ grad.attend.a.queries ─▶ gradient.q
                                       └─(transposed: i key, j query)──▶ grad.attend.a.keys ────▶ gradient.k, gradient.v

    A choice carries nothing, so neither does a branch that only serves one: choices are held fixed and read backwards, over an
    InverseChoiceEdge. Slots made by a module (`by = mlp`) are differentiated outside: their gradients are results themselves.
    Comes after the passes that change the forward graph. Raises ValueError for a graph that has been differentiated, and where
    slot visibility is not derived.
    """
    forward = {name: node for name, node in graph.nodes.items() if not isinstance(node, BackwardNode)}
    if len(forward) < len(graph.nodes):
        raise ValueError(f"{graph.pattern}: has been differentiated; second derivatives are not made")
    for name, node in graph.of_kind(AttendNode).items():
        if isinstance(node.branch.memory, Compress) and node.slot_where is None:
            raise ValueError(f"{graph.pattern}: {name} has no slot visibility; run derive_slot_visibility first")
    return _Differentiation(graph, forward).graph()


class _Differentiation:
    """Visits consumers before producers. What was handed to a node when its turn comes is the whole of its gradient."""

    def __init__(self, graph: BlockGraph, forward: dict[str, ForwardNode]) -> None:
        self._source = graph
        self._forward = forward
        self._nodes = graph.nodes
        self._edges = graph.edges
        self._handed: dict[str, list[str]] = {}
        self._row_source: dict[str, str] = {}
        """Attend node -> the node that has its rows' log-sum-exps: itself, or under merge the combine node."""

    def graph(self) -> BlockGraph:
        for name in reversed(self._source.order()):
            node = self._forward[name]
            if name in self._handed or isinstance(node, OutputNode):
                self._transpose(name, node)
        return BlockGraph(self._source.pattern, self._nodes, self._edges, (*self._source.passes, "differentiate"))

    def _transpose(self, name: str, node: ForwardNode) -> None:
        match node:
            case OutputNode():
                self._nodes[_OUT] = CotangentNode("out", None)
                for combine, _, _ in self._source.incoming(name):
                    self._hand(_OUT, combine)
            case CombineNode():
                self._combine(name, node)
            case AttendNode():
                self._attend(name, node)
            case CompressNode():
                self._compress(name, node)
            case InputNode():
                self._input(name, node)
            case ImportanceNode() | SelectNode():
                return  # what decides a choice carries nothing
            case _:
                assert_never(node)

    def _combine(self, name: str, node: CombineNode) -> None:
        """Row weights and deltas: from the cotangents, the gates, and the outputs and log-sum-exps the rows belong to."""
        self._nodes[_ROWS] = CombineGradNode(node.kind, node.branches)
        for each in self._handed[name]:
            self._connect(each, _ROWS, PointwiseEdge())
        for producer, source, _ in self._source.incoming(name):
            self._hand(_ROWS, producer)
            if isinstance(source, AttendNode):
                self._row_source[producer] = name if node.kind == "merge" else producer
                self._cotangent_lse("merge" if node.kind == "merge" else source.branch.name)
                self._connect(self._row_source[producer], _ROWS, PointwiseEdge())
            else:
                self._connect(producer, _ROWS, PointwiseEdge())

    def _cotangent_lse(self, owner: str) -> None:
        name = f"cotangent.lse.{owner}"
        self._nodes[name] = CotangentNode("lse", owner)
        self._connect(name, _ROWS, PointwiseEdge())

    def _attend(self, name: str, node: AttendNode) -> None:
        """The gradient of queries by the forward's walk, that of keys and values by its inverse."""
        queries, keys = f"grad.{name}.queries", f"grad.{name}.keys"
        slots = None if node.slot_where is None else transposed(node.slot_where)
        self._nodes[queries] = QueryGradNode(node.branch, node.static_where, node.may_where, node.slot_where)
        self._nodes[keys] = KeyGradNode(node.branch, transposed(node.static_where), transposed(node.may_where), slots)
        rows = [_OUT, _ROWS, self._row_source[name]]
        for producer, source, edge in self._source.incoming(name):
            match source, edge:
                case InputNode("q"), _:
                    rows.append(producer)
                    self._hand(queries, producer)
                case InputNode("sinks"), _:
                    self._connect(producer, _ROWS, PointwiseEdge())
                    self._hand(_ROWS, producer)
                case _, StaticEdge():
                    self._connect(producer, queries, edge)
                    self._connect(producer, keys, PointwiseEdge())
                    self._hand(keys, producer)
                case _, ChoiceEdge():
                    self._connect(producer, queries, edge)
                    self._connect(producer, keys, inverse_choice(edge))
                case _:  # cu_seqlens
                    self._connect(producer, queries, edge)
                    self._connect(producer, keys, edge)
        inverse = inverse_static(next(edge for _, _, edge in self._source.incoming(name) if isinstance(edge, StaticEdge)))
        for producer in rows:
            self._connect(producer, queries, PointwiseEdge())
            self._connect(producer, keys, inverse)

    def _compress(self, name: str, node: CompressNode) -> None:
        """A token gathers from the slots that cover it; slots that a module made are results."""
        if node.memory.by == "mlp":
            self._result("slots", _slots_owner(node), node.part, self._handed[name])
            return
        gradient = f"grad.{name}"
        self._nodes[gradient] = CompressGradNode(node.memory, node.part, node.branch)
        for producer, _, edge in self._source.incoming(name):
            self._hand(gradient, producer)
            if isinstance(edge, StaticEdge):
                inverse = inverse_static(edge)
                for each in self._handed[name]:
                    self._connect(each, gradient, inverse)
                if node.memory.by == "max":  # a greatest key shares with the others of its slot that equal it
                    self._connect(name, gradient, inverse)
                    self._connect(producer, gradient, StaticEdge(shared_slot(node.memory), 1, 1, "keys"))
                elif node.memory.by == "weighted":
                    self._connect(producer, gradient, PointwiseEdge())
            else:
                self._connect(producer, gradient, edge)

    def _input(self, name: str, node: InputNode) -> None:
        match node.role:
            case "q" | "k" | "v" | "gates" | "sinks":
                self._result(node.role, node.owner, None, self._handed[name])
            case "weights":
                for part in _PARTS:
                    made = [each for each in self._handed[name] if self._part(each) == part]
                    if made:
                        self._result("weights", node.owner, part, made)
            case "compressors" | "scores" | "indices" | "indexer" | "cu_seqlens":
                return  # read by what carries nothing, or outside
            case _:
                assert_never(node.role)

    def _part(self, gradient: str) -> Part | None:
        node = self._nodes[gradient]
        return node.part if isinstance(node, CompressGradNode) else None

    def _result(self, role: GradientRole, owner: str | None, part: Part | None, producers: list[str]) -> None:
        name = ".".join(each for each in ("gradient", role, owner, part) if each is not None)
        self._nodes[name] = GradientNode(role, owner, part)
        for producer in producers:
            self._connect(producer, name, PointwiseEdge())

    def _hand(self, gradient: str, node: str) -> None:
        self._handed.setdefault(node, []).append(gradient)

    def _connect(self, producer: str, consumer: str, edge: Edge) -> None:
        self._edges[producer, consumer] = edge


def _slots_owner(node: CompressNode) -> str:
    return node.memory.name if node.branch is None else f"{node.memory.name}.{node.branch}"
