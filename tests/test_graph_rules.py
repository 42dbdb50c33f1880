"""The rules that legal graphs obey: for each, one graph that breaks just it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import patterns
import pytest

from nsa_dsl.graph import (
    AttendNode,
    BlockGraph,
    ChoiceEdge,
    CombineNode,
    Edge,
    Ends,
    GraphError,
    InputNode,
    Node,
    OutputNode,
    PointwiseEdge,
    SelectNode,
    StaticEdge,
)
from nsa_dsl.lower import lower
from nsa_dsl.passes import run_passes
from nsa_dsl.pattern import Compress, GivenIndices, GivenScores
from nsa_dsl.relation import CAUSAL, EMPTY, FULL, Chosen, Compare, Const, Var, disjunction

Nodes = dict[str, Node]
Edges = dict[Ends, Edge]
Fault = Callable[[Nodes, Edges], None]


def _cycle(_: Nodes, edges: Edges) -> None:
    # among each other: edge types and counts stay legal
    edges["select.x", "select.y"], edges["select.y", "select.x"] = (ChoiceEdge(each, FULL, EMPTY, 8) for each in "xy")


def _no_output(nodes: Nodes, edges: Edges) -> None:
    del nodes["output"], edges["combine", "output"]


def _wrong_edge(_: Nodes, edges: Edges) -> None:
    edges["input.q", "attend.windowed"] = StaticEdge(CAUSAL, 1, 1, "pairs")


def _stranger(_: Nodes, edges: Edges) -> None:
    edges["input.q", "output"] = PointwiseEdge()


def _no_keys(_: Nodes, edges: Edges) -> None:
    del edges["input.k", "attend.windowed"]


def _no_gates(_: Nodes, edges: Edges) -> None:
    del edges["input.gates", "combine"]


def _dangling(nodes: Nodes, edges: Edges) -> None:
    combine = nodes["combine"]
    assert isinstance(combine, CombineNode)
    nodes["attend.other"] = nodes["attend.windowed"]
    edges.update({(producer, "attend.other"): edge for (producer, consumer), edge in list(edges.items()) if consumer == "attend.windowed"})
    nodes["combine"] = replace(combine, branches=("attend.compressed", "attend.selected", "attend.other"))


def _single_of_three(nodes: Nodes, edges: Edges) -> None:
    combine = nodes["combine"]
    assert isinstance(combine, CombineNode)
    nodes["combine"] = replace(combine, kind="single")
    del edges["input.gates", "combine"]


def _choice_from_nowhere(_: Nodes, edges: Edges) -> None:
    edges["attend.windowed", "attend.selected"] = edges.pop(("select.selected", "attend.selected"))


def _other_choice(_: Nodes, edges: Edges) -> None:
    edge = edges["select.selected", "attend.selected"]
    edges["select.selected", "attend.selected"] = replace(edge, block=16)  # type: ignore[type-var]


def _unnamed_choice(nodes: Nodes, _: Edges) -> None:
    node = nodes["attend.selected"]
    assert isinstance(node, AttendNode)
    nodes["attend.selected"] = replace(node, branch=replace(node.branch, where=CAUSAL))


def _unmade_choice(nodes: Nodes, _: Edges) -> None:
    node = nodes["attend.windowed"]
    assert isinstance(node, AttendNode)
    nodes["attend.windowed"] = replace(node, branch=replace(node.branch, where=Chosen("selected")))


def _wrong_among(nodes: Nodes, edges: Edges) -> None:
    node = nodes["select.selected"]
    assert isinstance(node, SelectNode)
    outer = replace(node.choice, name="outer", score=GivenScores())
    nodes["select.outer"], nodes["input.scores.outer"] = SelectNode(outer), InputNode("scores", "outer")
    nodes["select.selected"] = SelectNode(replace(node.choice, among="elsewhere"))
    edges["input.scores.outer", "select.outer"] = PointwiseEdge()
    edges["select.outer", "select.selected"] = ChoiceEdge("outer", FULL, EMPTY, 8)


def _dynamic_relation(_: Nodes, edges: Edges) -> None:
    edges["input.k", "attend.selected"] = StaticEdge(Chosen("selected"), 1, 1, "pairs")


def _tile_in_relation(_: Nodes, edges: Edges) -> None:
    edges["input.k", "attend.windowed"] = StaticEdge(Compare("<", Var("tile"), Const(3)), 1, 1, "pairs")


def _no_unit(_: Nodes, edges: Edges) -> None:
    edges["input.k", "attend.windowed"] = StaticEdge(CAUSAL, 1, 0, "pairs")


def _no_block(nodes: Nodes, edges: Edges) -> None:
    node, edge = nodes["select.selected"], edges["select.selected", "attend.selected"]
    assert isinstance(node, SelectNode)
    assert isinstance(edge, ChoiceEdge)
    nodes["select.selected"] = SelectNode(replace(node.choice, block=0))
    edges["select.selected", "attend.selected"] = replace(edge, block=0)


def _no_slots(nodes: Nodes, _: Edges) -> None:
    node = nodes["attend.compressed"]
    assert isinstance(node, AttendNode)
    nodes["attend.compressed"] = replace(node, slot_where=None)


def _other_slots(_: Nodes, edges: Edges) -> None:
    edges["compress.summary.keys", "attend.compressed"] = StaticEdge(CAUSAL, 1, 4, "pairs")


def _slots_over_tokens(nodes: Nodes, _: Edges) -> None:
    node = nodes["attend.windowed"]
    assert isinstance(node, AttendNode)
    nodes["attend.windowed"] = replace(node, slot_where=CAUSAL)


def _unused(nodes: Nodes, _: Edges) -> None:
    nodes["input.sinks.windowed"] = InputNode("sinks", "windowed")


FAULTS: tuple[tuple[Fault, tuple[str, ...]], ...] = (
    (_no_output, ("must have one output, has 0", "combine: nothing needs it")),
    (_wrong_edge, ("input.q -> attend.windowed: must be PointwiseEdge, is StaticEdge",)),
    (_stranger, ("input.q -> output: no output takes anything from q", "output: needs 0 q, has 1")),
    (_no_keys, ("attend.windowed: needs 1 k, has 0",)),
    (_no_gates, ("combine: needs 1 gates, has 0", "input.gates: nothing needs it")),
    (_dangling, ("combine: combines attend.other, which it is not connected to", "attend.other: nothing needs it")),
    (_single_of_three, ("combine: single cannot combine 3 branches", "input.gates: nothing needs it")),
    (
        _choice_from_nowhere,
        (
            "attend.windowed -> attend.selected: no attend takes anything from attend",
            "attend.selected: needs 0 attend, has 1",
            "attend.selected: needs 1 select, has 0",
            "attend.windowed -> attend.selected: a choice must come from a select node",
            "select.selected: nothing needs it",
        ),
    ),
    (_other_choice, ("select.selected -> attend.selected: carries selected of 16-blocks, select.selected makes another choice",)),
    (_unnamed_choice, ("attend.selected: is given selected, which its where does not name",)),
    (_unmade_choice, ("attend.windowed: its where names selected, which it does not have",)),
    (_wrong_among, ("select.selected: chooses among elsewhere, is given outer",)),
    (_dynamic_relation, ("input.k -> attend.selected: a static relation names the choice selected",)),
    (_tile_in_relation, ("input.k -> attend.windowed: a static relation names a query tile",)),
    (_no_unit, ("input.k -> attend.windowed: units must be at least 1 token",)),
    (_no_block, ("select.selected -> attend.selected: a block must be at least 1 token",)),
    (_no_slots, ("attend.compressed: slot visibility is missing",)),
    (_other_slots, ("compress.summary.keys -> attend.compressed: does not carry the slot visibility of attend.compressed",)),
    (_slots_over_tokens, ("attend.windowed: slot visibility of a branch over tokens",)),
    (_unused, ("input.sinks.windowed: nothing needs it",)),
)


@pytest.mark.parametrize(("fault", "sentences"), FAULTS, ids=[fault.__name__.lstrip("_") for fault, _ in FAULTS])
def test_verify_reports(fault: Fault, sentences: tuple[str, ...]) -> None:
    graph = run_passes(lower(patterns.nsa()))
    nodes, edges = graph.nodes, graph.edges
    fault(nodes, edges)
    with pytest.raises(GraphError) as caught:
        BlockGraph(graph.pattern, nodes, edges, graph.passes).verify()
    # input.v still serves the other branches in every fault: what the sentences list is all there is.
    assert caught.value.violations == sentences
    assert str(caught.value).splitlines()[1:] == [f"  {each}" for each in sentences]


def test_verify_reports_a_cycle() -> None:
    x, y = (patterns.choice(name, score=GivenIndices(), among=other) for name, other in ("xy", "yx"))
    where = disjunction(Chosen("x"), Chosen("y"))
    free = (replace(x, among=None), replace(y, among=None))
    graph = lower(patterns.pattern("p", patterns.branch("x", where, choices=free)))
    nodes, edges = graph.nodes, graph.edges
    nodes["select.x"], nodes["select.y"] = SelectNode(x), SelectNode(y)
    _cycle(nodes, edges)
    with pytest.raises(GraphError) as caught:
        BlockGraph(graph.pattern, nodes, edges).verify()
    assert caught.value.violations in (("cycle: select.x -> select.y -> select.x",), ("cycle: select.y -> select.x -> select.y",))


def test_two_outputs_are_refused() -> None:
    graph = lower(patterns.causal())
    nodes = graph.nodes | {"output2": OutputNode()}
    edges = graph.edges | {("combine", "output2"): PointwiseEdge()}
    with pytest.raises(GraphError, match="must have one output, has 2"):
        BlockGraph("p", nodes, edges).verify()


def test_rules_of_a_pass_hold_only_after_it() -> None:
    dead = patterns.pattern("p", patterns.branch("dead", CAUSAL, Compress("s", 4, 4, "mean")), patterns.branch("live", CAUSAL))
    graph = lower(dead)
    graph.verify()
    with pytest.raises(GraphError, match=r"attend\.dead: nothing needs it"):
        BlockGraph(graph.pattern, graph.nodes, graph.edges, ("drop_dead_branches",)).verify()
