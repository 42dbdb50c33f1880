"""Lowering: from a pattern to its block-dependency graph."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import networkx
import patterns
import pytest

from nsa_dsl import relation
from nsa_dsl.graph import (
    BlockGraph,
    CombineNode,
    InputNode,
    PointwiseEdge,
    StaticEdge,
)
from nsa_dsl.lower import lower
from nsa_dsl.pattern import BranchScore, GivenIndices, GivenScores, IndexScore, Output, PooledScore
from nsa_dsl.relation import CAUSAL


def test_nsa_is_the_papers_graph() -> None:
    edges = {ends: type(edge).__name__ for ends, edge in lower(patterns.nsa()).edges.items()}
    keys, values = "compress.summary.keys", "compress.summary.values"
    branches = ("attend.compressed", "attend.selected", "attend.windowed")
    static = [("input.k", keys), ("input.v", values), (keys, branches[0]), (values, branches[0]), (branches[0], "importance.selected")]
    static += [(each, branch) for each in ("input.k", "input.v") for branch in branches[1:]]
    pointwise = [*((each, "combine") for each in branches), *(("input.q", each) for each in branches)]
    pointwise += [("importance.selected", "select.selected"), ("input.gates", "combine"), ("combine", "output")]
    expected = dict.fromkeys(static, "StaticEdge") | dict.fromkeys(pointwise, "PointwiseEdge")
    assert edges == expected | {("select.selected", "attend.selected"): "ChoiceEdge"}


def test_kv_per_branch_gives_each_branch_its_own_keys_and_values() -> None:
    graph = lower(patterns.nsa(kv_per_branch=True))
    owners = {node.owner for node in graph.of_kind(InputNode).values() if node.role in ("k", "v")}
    assert owners == {"compressed", "selected", "windowed"}
    assert ("input.k.compressed", "compress.summary.keys.compressed") in graph.edges


@pytest.mark.parametrize(
    ("score", "producers"),
    [
        (BranchScore("compressed"), {"importance.selected": {"attend.compressed"}}),
        (PooledScore("max"), {"importance.selected": {"input.q", "input.k"}}),
        (IndexScore(2, 8), {"importance.selected": {"input.indexer.selected"}}),
        (GivenScores(), {"input.scores.selected": set()}),
        (GivenIndices(), {"input.indices.selected": set()}),
    ],
)
def test_a_choice_needs_what_its_score_is_made_from(score: object, producers: dict[str, set[str]]) -> None:
    graph = lower(patterns.nsa(score=score))
    graph.verify()
    assert {name: {each for each, _, _ in graph.incoming(name)} for name, _, _ in graph.incoming("select.selected")} == producers


@pytest.mark.parametrize(("changes", "needed"), [({"every": 4}, [8]), ({"queries": 4}, [8, 9, 10, 11])])
def test_pooled_scores_need_the_first_query_of_a_run_or_all_of_a_tile(changes: dict[str, int], needed: list[int]) -> None:
    edge = lower(patterns.nsa(score=PooledScore("mean"), **changes)).edges["input.q", "importance.selected"]
    assert isinstance(edge, StaticEdge)
    assert [query for query in range(16) if relation.evaluate(edge.relation, {"i": 2, "j": query})] == needed
    assert (edge.consumer_unit, edge.producer_unit, edge.along) == (4, 1, "queries")


def test_slots_and_blocks_overlap_as_in_equation_9() -> None:
    edge = lower(patterns.nsa(l=8, d=4, b=8)).edges["attend.compressed", "importance.selected"]
    assert isinstance(edge, StaticEdge)
    needed = [slot for slot in range(20) if relation.evaluate(edge.relation, {"i": 2, "j": slot})]
    assert needed == [slot for slot in range(20) if set(range(4 * slot, 4 * slot + 8)) & set(range(16, 24))] == [3, 4, 5]


def test_graphs_are_frozen_values() -> None:
    graph = lower(patterns.nsa())
    with pytest.raises(networkx.NetworkXError, match="Frozen"):
        graph.digraph.add_node("other")
    with pytest.raises(FrozenInstanceError):
        graph.node("combine").kind = "mix"  # type: ignore[misc, union-attr]
    assert graph == lower(patterns.nsa())
    assert hash(graph) == hash(lower(patterns.nsa()))
    assert graph != lower(patterns.nsa(n=5))


def test_an_edge_needs_both_its_ends() -> None:
    with pytest.raises(ValueError, match=r"input\.q -> attend\.a has an end"):
        BlockGraph("p", {"input.q": InputNode("q", None)}, {("input.q", "attend.a"): PointwiseEdge()})


def test_output_kinds() -> None:
    for kind in ("gate", "mix", "merge"):
        branches = patterns.branch("a", CAUSAL), patterns.branch("b", patterns.window(3))
        pattern = patterns.pattern("p", *branches, output=Output(kind, ("b", "a")))  # type: ignore[arg-type]
        graph = lower(pattern)
        graph.verify()
        assert graph.node("combine") == CombineNode(kind, ("attend.b", "attend.a"))  # type: ignore[arg-type]
        assert ("input.gates" in graph.nodes) == (kind != "merge")
