"""The rules that gradient graphs obey: no node or edge of the transposed graph may be missing, doubled or another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import patterns
import pytest

from nsa_dsl.graph import (
    BackwardNode,
    BlockGraph,
    ChoiceEdge,
    CombineGradNode,
    Edge,
    Ends,
    GradientNode,
    GraphError,
    InverseChoiceEdge,
    KeyGradNode,
    Node,
    PointwiseEdge,
    StaticEdge,
)
from nsa_dsl.lower import lower
from nsa_dsl.passes import run_passes
from nsa_dsl.passes.differentiate import differentiate
from nsa_dsl.passes.share_equal_work import share_equal_work
from nsa_dsl.pattern import Output, Pattern
from nsa_dsl.relation import CAUSAL, Compare, Condition, Const, Var, rewrite, transposed


def gradient_graph(pattern: Pattern) -> BlockGraph:
    """The pattern's gradient graph."""
    return differentiate(run_passes(lower(pattern)))


Nodes = dict[str, Node]
Edges = dict[Ends, Edge]


@cache
def _graph() -> BlockGraph:
    return gradient_graph(patterns.nsa())


def _drop(producer: str, consumer: str) -> Callable[[Nodes, Edges], None]:
    def fault(_: Nodes, edges: Edges) -> None:
        del edges[producer, consumer]

    return fault


def _put(producer: str, consumer: str, edge: Edge) -> Callable[[Nodes, Edges], None]:
    def fault(_: Nodes, edges: Edges) -> None:
        edges[producer, consumer] = edge

    return fault


def _rows_of_another_branch(_: Nodes, edges: Edges) -> None:
    edges["attend.windowed", "grad.attend.selected.queries"] = edges.pop(("attend.selected", "grad.attend.selected.queries"))


def _no_key_gradient(nodes: Nodes, edges: Edges) -> None:
    del nodes["grad.attend.windowed.keys"]
    for ends in [each for each in edges if "grad.attend.windowed.keys" in each]:
        del edges[ends]


def _no_gate_gradient(nodes: Nodes, edges: Edges) -> None:
    del nodes["gradient.gates"], edges["grad.combine", "gradient.gates"]


def _two_gradients_of_q(nodes: Nodes, edges: Edges) -> None:
    nodes["gradient.q2"] = nodes["gradient.q"]
    edges.update({(producer, "gradient.q2"): edge for (producer, consumer), edge in list(edges.items()) if consumer == "gradient.q"})


def _gradient_of_no_input(nodes: Nodes, edges: Edges) -> None:
    nodes["gradient.sinks.windowed"] = GradientNode("sinks", "windowed", None)
    edges["grad.combine", "gradient.sinks.windowed"] = PointwiseEdge()


def _gates_in_another_order(nodes: Nodes, _: Edges) -> None:
    node = nodes["grad.combine"]
    assert isinstance(node, CombineGradNode)
    nodes["grad.combine"] = replace(node, branches=node.branches[::-1])


def _key_relations_not_turned(nodes: Nodes, _: Edges) -> None:
    node = nodes["grad.attend.windowed.keys"]
    assert isinstance(node, KeyGradNode)
    nodes["grad.attend.windowed.keys"] = replace(node, may_where=transposed(node.may_where))


WINDOW = patterns.window(8)
FAULTS: list[tuple[Callable[[Nodes, Edges], None], tuple[str, ...]]] = [
    (_drop("input.q", "grad.attend.windowed.keys"), ("grad.attend.windowed.keys: must read input.q",)),
    (
        _drop("grad.compress.summary.keys", "gradient.k"),
        ("gradient.k: must read grad.compress.summary.keys", "grad.compress.summary.keys: nothing needs it"),
    ),
    (
        _drop("grad.attend.compressed.keys", "grad.compress.summary.values"),
        ("grad.compress.summary.values: must read grad.attend.compressed.keys",),
    ),
    (
        _drop("cotangent.lse.selected", "grad.combine"),
        ("grad.combine: must read cotangent.lse.selected", "cotangent.lse.selected: nothing needs it"),
    ),
    (
        _put("input.q", "grad.attend.windowed.keys", StaticEdge(WINDOW, 1, 1, "inverse")),
        ("input.q -> grad.attend.windowed.keys: its relation must be what follows from the forward graph",),
    ),
    (
        _put("input.q", "grad.attend.windowed.keys", PointwiseEdge()),
        ("input.q -> grad.attend.windowed.keys: must be StaticEdge, is PointwiseEdge",),
    ),
    (
        _put("input.k", "grad.attend.windowed.queries", StaticEdge(transposed(WINDOW), 1, 1, "inverse")),
        ("input.k -> grad.attend.windowed.queries: its relation and along must be what follows from the forward graph",),
    ),
    (
        _put("select.selected", "grad.attend.selected.keys", ChoiceEdge("selected", CAUSAL, CAUSAL, 8)),
        ("select.selected -> grad.attend.selected.keys: must be InverseChoiceEdge, is ChoiceEdge",),
    ),
    (
        _put("grad.attend.windowed.queries", "gradient.k", PointwiseEdge()),
        ("gradient.k: must not read grad.attend.windowed.queries",),
    ),
    (
        _rows_of_another_branch,
        ("grad.attend.selected.queries: must read attend.selected", "grad.attend.selected.queries: must not read attend.windowed"),
    ),
    (
        _put("cotangent.out", "combine", PointwiseEdge()),
        ("cotangent.out -> combine: no combine takes anything from cotangent", "combine: needs 0 cotangent, has 1"),
    ),
    (
        _no_key_gradient,
        ("must have one grad.attend.windowed.keys over the transposed relations, has 0",),
    ),
    (_no_gate_gradient, ("must have one gradient.gates, has 0",)),
    (_two_gradients_of_q, ("must have one gradient.q, has 2",)),
    (_gradient_of_no_input, ("gradient.sinks.windowed: is not the gradient.sinks.windowed of this forward graph",)),
    (
        _gates_in_another_order,
        (
            "must have one grad.combine by gate of attend.compressed, attend.selected, attend.windowed, has 0",
            "grad.combine: is not the grad.combine by gate of attend.windowed, attend.selected, attend.compressed of this forward graph",
        ),
    ),
    (
        _key_relations_not_turned,
        (
            "must have one grad.attend.windowed.keys over the transposed relations, has 0",
            "grad.attend.windowed.keys: is not the grad.attend.windowed.keys over the transposed relations of this forward graph",
        ),
    ),
]


@pytest.mark.parametrize(("fault", "sentences"), FAULTS)
def test_each_fault_is_named(fault: Callable[[Nodes, Edges], None], sentences: tuple[str, ...]) -> None:
    graph = _graph()
    nodes, edges = graph.nodes, graph.edges
    fault(nodes, edges)
    with pytest.raises(GraphError) as caught:
        BlockGraph(graph.pattern, nodes, edges, graph.passes).verify()
    assert caught.value.violations == sentences


def _shifted(relation: Condition) -> Condition:
    """One query further."""
    return rewrite(relation, {"j": patterns.Sum((Var("j"), Const(1)))})


def _wrong(edge: Edge) -> list[Edge]:
    """The edge gone wrong in every way that its kind can: shifted, turned once more, in other units."""
    match edge:
        case StaticEdge():
            turned = replace(edge, relation=transposed(edge.relation))
            units = replace(edge, consumer_unit=edge.producer_unit, producer_unit=edge.consumer_unit)
            wider = replace(edge, consumer_unit=edge.consumer_unit + 1)
            return [replace(edge, relation=_shifted(edge.relation)), turned, units, wider, PointwiseEdge()]
        case ChoiceEdge() | InverseChoiceEdge():
            turned_choice = replace(edge, may=transposed(edge.may), must=transposed(edge.must))
            return [replace(edge, may=_shifted(edge.may)), turned_choice, replace(edge, block=edge.block + 1), PointwiseEdge()]
        case PointwiseEdge():
            return [StaticEdge(CAUSAL, 1, 1, "inverse")]


TWO = patterns.pattern(
    "two",
    patterns.branch("near", patterns.window(4), sink=True),
    patterns.branch("far", Compare("<=", Var("j"), patterns.Sum((Var("i"), Const(-4))))),
    output=Output("merge", ("near", "far")),
)
WATCHED = {
    "nsa, max": patterns.nsa(by="max"),
    "nsa, weighted, kv per branch": patterns.nsa(by="weighted", kv_per_branch=True),
    "mlp": patterns.nsa(by="mlp"),
    "merge": TWO,
    "mix": replace(TWO, output=Output("mix", ("near", "far"))),
    "documents": patterns.packed(patterns.window(3)),
    "asa": patterns.asa_global(),
}


@pytest.mark.parametrize("name", WATCHED)
def test_no_edge_of_the_transposed_graph_may_be_missing_or_another(name: str) -> None:
    graph = gradient_graph(WATCHED[name])
    nodes, edges = graph.nodes, graph.edges
    for ends, edge in edges.items():
        if isinstance(nodes[ends[1]], BackwardNode):
            without = {each: kept for each, kept in edges.items() if each != ends}
            with pytest.raises(GraphError, match=f"{ends[1]}: must read {ends[0]}"):
                BlockGraph("p", nodes, without, graph.passes).verify()
            for wrong in _wrong(edge):
                if wrong != edge:
                    with pytest.raises(GraphError, match=f"{ends[0]} -> {ends[1]}: "):
                        BlockGraph("p", nodes, edges | {ends: wrong}, graph.passes).verify()


@pytest.mark.parametrize("name", WATCHED)
def test_no_node_of_the_transposed_graph_may_be_missing(name: str) -> None:
    graph = gradient_graph(WATCHED[name])
    for gone, node in graph.nodes.items():
        if isinstance(node, BackwardNode):
            nodes = {each: kept for each, kept in graph.nodes.items() if each != gone}
            edges = {ends: edge for ends, edge in graph.edges.items() if gone not in ends}
            with pytest.raises(GraphError, match=r"must have one .*, has 0"):
                BlockGraph("p", nodes, edges, graph.passes).verify()


def test_what_comes_in_the_wrong_order_is_refused() -> None:
    graph = _graph()
    with pytest.raises(ValueError, match="second derivatives are not made"):
        differentiate(graph)
    with pytest.raises(ValueError, match=r"attend\.compressed has no slot visibility; run derive_slot_visibility first"):
        differentiate(lower(patterns.nsa()))
    with pytest.raises(ValueError, match="share equal work first, then differentiate"):
        share_equal_work(graph)
