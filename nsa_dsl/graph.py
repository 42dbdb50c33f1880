"""The block-dependency graph: what an attention layer computes, and which blocks of each producer every consumer needs.

A thin typed wrapper over `networkx.DiGraph`: the payload of a node or edge is one of the frozen values of `graph_nodes`.
Graphs are frozen; passes build new ones. Which graphs are legal is written in `graph_rules`.

    q, k, v ──▶ compress ──▶ attend(compressed) ──▶ importance ──▶ select ──▶ attend(selected) ──▶ combine ──▶ output

A gradient graph holds a forward graph whole and its transpose, from the cotangents to the gradient of each input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import networkx

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
    Ends,
    ForwardNode,
    GradientNode,
    GradientRole,
    ImportanceNode,
    InputNode,
    InverseChoiceEdge,
    KeyGradNode,
    Node,
    NodeType,
    OutputNode,
    Part,
    PointwiseEdge,
    QueryGradNode,
    SelectNode,
    StaticEdge,
)
from nsa_dsl.graph_rules import violations

__all__ = [
    "AttendNode",
    "BackwardNode",
    "BlockGraph",
    "ChoiceEdge",
    "CombineGradNode",
    "CombineNode",
    "CompressGradNode",
    "CompressNode",
    "CotangentNode",
    "Edge",
    "Ends",
    "ForwardNode",
    "GradientNode",
    "GradientRole",
    "GraphError",
    "ImportanceNode",
    "InputNode",
    "InverseChoiceEdge",
    "KeyGradNode",
    "Node",
    "NodeType",
    "OutputNode",
    "Part",
    "PointwiseEdge",
    "QueryGradNode",
    "SelectNode",
    "StaticEdge",
]


class GraphError(Exception):
    """A graph breaks the rules: a fault of the compiler, never of a spec. `violations`: one sentence each, all of them."""

    def __init__(self, pattern: str, violations: tuple[str, ...]) -> None:
        self.violations = violations
        super().__init__("\n".join((f"the block-dependency graph of {pattern} is not legal:", *(f"  {each}" for each in violations))))


class BlockGraph:
    """A frozen block-dependency graph. Equal graphs have equal names, nodes, edges and passes.

    pattern: the pattern's name. passes: the names of the passes that ran, in order; what they establish is checked from
    then on. Nodes and edges keep the order in which they were given.
    """

    __slots__ = ("_digraph", "passes", "pattern")

    def __init__(self, pattern: str, nodes: Mapping[str, Node], edges: Mapping[Ends, Edge], passes: tuple[str, ...] = ()) -> None:
        """Raises ValueError for an edge whose end is not a node."""
        self.pattern = pattern
        self.passes = passes
        digraph: networkx.DiGraph[str] = networkx.DiGraph()
        for name, node in nodes.items():
            digraph.add_node(name, payload=node)
        for (producer, consumer), edge in edges.items():
            if producer not in nodes or consumer not in nodes:
                raise ValueError(f"edge {producer} -> {consumer} has an end that is not a node")
            digraph.add_edge(producer, consumer, payload=edge)
        self._digraph = digraph
        networkx.freeze(digraph)

    @property
    def digraph(self) -> networkx.DiGraph[str]:
        """The frozen networkx graph; payloads stand under the attribute `payload`."""
        return self._digraph

    @property
    def nodes(self) -> dict[str, Node]:
        """Name -> node."""
        return {name: data["payload"] for name, data in self._digraph.nodes(data=True)}

    @property
    def edges(self) -> dict[Ends, Edge]:
        """(producer, consumer) -> edge."""
        return {(producer, consumer): data["payload"] for producer, consumer, data in self._digraph.edges(data=True)}

    def node(self, name: str) -> Node:
        """The node of this name. Raises KeyError."""
        node: Node = self._digraph.nodes[name]["payload"]
        return node

    def of_kind(self, kind: type[NodeType]) -> dict[str, NodeType]:
        """Name -> node, for the nodes of one kind."""
        return {name: node for name, node in self.nodes.items() if isinstance(node, kind)}

    def incoming(self, name: str) -> Iterator[tuple[str, Node, Edge]]:
        """(producer's name, producer, edge) for everything the node needs."""
        for producer, _, data in self._digraph.in_edges(name, data=True):
            yield producer, self.node(producer), data["payload"]

    def order(self) -> list[str]:
        """Names, producers first, ties by name. Raises networkx.NetworkXUnfeasible when there is a cycle."""
        return list(networkx.lexicographical_topological_sort(self._digraph))

    def verify(self) -> None:
        """Raises GraphError, listing everything that is wrong, unless the graph is legal."""
        found = violations(self.nodes, self.edges, self.passes)
        if found:
            raise GraphError(self.pattern, found)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BlockGraph):
            return NotImplemented
        mine = (self.pattern, self.passes, self.nodes, self.edges)
        return mine == (other.pattern, other.passes, other.nodes, other.edges)

    def __hash__(self) -> int:
        return hash((self.pattern, self.passes, frozenset(self.nodes.items()), frozenset(self.edges.items())))

    def __repr__(self) -> str:
        return f"BlockGraph({self.pattern!r}, {len(self.nodes)} nodes, {len(self.edges)} edges, passes={self.passes!r})"
