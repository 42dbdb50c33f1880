"""Passes over the block-dependency graph: valid in, valid out, the same meaning with less work."""

from __future__ import annotations

from pathlib import Path

import graph_patterns
import patterns
import pytest
from hypothesis import given, settings

from nsa_dsl import relation
from nsa_dsl.graph import AttendNode, BlockGraph, CombineNode, GraphError, ImportanceNode, InputNode, SelectNode, StaticEdge
from nsa_dsl.loader import load_spec
from nsa_dsl.lower import lower
from nsa_dsl.passes import PASSES, run_passes
from nsa_dsl.passes.derive_slot_visibility import derive_slot_visibility
from nsa_dsl.passes.drop_dead_branches import drop_dead_branches
from nsa_dsl.passes.share_equal_work import share_equal_work
from nsa_dsl.pattern import BranchScore, Compress, GivenScores, Output, Pattern, PooledScore
from nsa_dsl.relation import CAUSAL, Chosen, conjunction

EXAMPLES = Path(__file__).parent.parent / "examples"

# -- every pass -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(graph_patterns.patterns())
def test_valid_in_valid_out(pattern: Pattern) -> None:
    graph = lower(pattern)
    graph.verify()
    for each in PASSES:
        before = (graph.nodes, graph.edges, graph.passes)
        result = each(graph)
        result.verify()
        assert (graph.nodes, graph.edges, graph.passes) == before, "a pass must not change its input"
        assert result.passes == (*graph.passes, each.__name__)
        again = each(result)
        assert (again.nodes, again.edges) == (result.nodes, result.edges), "a pass must find nothing more to do"
        graph = result


def test_run_passes_refuses_a_graph_that_is_not_legal() -> None:
    graph = lower(patterns.causal())
    edges = graph.edges
    del edges["input.q", "attend.only"]
    with pytest.raises(GraphError, match=r"attend\.only: needs 1 q, has 0"):
        run_passes(BlockGraph("p", graph.nodes, edges))


# -- drop_dead_branches -----------------------------------------------------------------------------------------------------


def test_dead_branches_go_and_scored_ones_stay() -> None:
    graph = drop_dead_branches(lower(_nsa_with("selected")))
    assert set(graph.of_kind(AttendNode)) == {"attend.compressed", "attend.selected"}
    assert "input.gates" not in graph.nodes
    graph = drop_dead_branches(lower(_nsa_with("windowed")))
    assert set(graph.nodes) == {"input.q", "input.k", "input.v", "attend.windowed", "combine", "output"}


def test_a_choice_that_bounds_another_outlives_its_branch() -> None:
    outer = patterns.choice("outer", score=GivenScores(), block=16)
    inner = patterns.choice("inner", score=GivenScores(), among="outer")
    branches = (patterns.branch(each.name, conjunction(CAUSAL, Chosen(each.name)), choices=(each,)) for each in (outer, inner))
    graph = drop_dead_branches(lower(patterns.pattern("p", *branches)))
    assert set(graph.of_kind(SelectNode)) == {"select.outer", "select.inner"}
    assert set(graph.of_kind(AttendNode)) == {"attend.inner"}


def _nsa_with(output: str) -> Pattern:
    return patterns.pattern("p", *patterns.nsa().branches, output=Output("single", (output,)))


# -- share_equal_work -------------------------------------------------------------------------------------------------------


def _twice(by: str = "mean", kv_per_branch: bool = False, second: relation.Condition = CAUSAL) -> BlockGraph:
    """Two compressed branches over memories that differ in name alone, each choosing for a branch of its own."""
    branches = []
    for name, where in (("a", CAUSAL), ("b", second)):
        chosen = patterns.choice(f"{name}_selected", score=BranchScore(f"{name}_compressed"))
        branches.append(patterns.branch(f"{name}_compressed", where, Compress(f"{name}_summary", 8, 4, by)))  # type: ignore[arg-type]
        branches.append(patterns.branch(chosen.name, conjunction(CAUSAL, Chosen(chosen.name)), choices=(chosen,)))
    output = Output("gate", tuple(each.name for each in branches))
    graph = lower(patterns.pattern("p", *branches, output=output, kv_per_branch=kv_per_branch))
    return share_equal_work(graph)


def test_equal_work_is_done_once() -> None:
    graph = _twice()
    graph.verify()
    chain = {"compress.a_summary.keys", "compress.a_summary.values", "attend.a_compressed", "importance.a_selected"}
    ends = {f"{kind}.{name}_selected" for kind in ("select", "attend") for name in "ab"} | {"combine", "output"}
    assert set(graph.nodes) == {"input.q", "input.k", "input.v", "input.gates"} | chain | ends
    combine = graph.node("combine")
    assert isinstance(combine, CombineNode)
    assert combine.branches == ("attend.a_compressed", "attend.a_selected", "attend.a_compressed", "attend.b_selected")


def test_equal_choices_share_their_scores_and_keep_their_names() -> None:
    chosen = tuple(patterns.choice(name, score=BranchScore("compressed")) for name in ("near", "wide"))
    pattern = patterns.pattern(
        "p",
        patterns.branch("compressed", CAUSAL, Compress("s", 8, 4, "mean")),
        patterns.branch("near", conjunction(patterns.window(9), Chosen("near")), choices=chosen[:1]),
        patterns.branch("wide", conjunction(CAUSAL, Chosen("wide")), choices=chosen[1:]),
        output=Output("gate", ("near", "wide")),
    )
    graph = share_equal_work(lower(pattern))
    graph.verify()
    assert set(graph.of_kind(ImportanceNode)) == {"importance.near"}
    assert set(graph.of_kind(SelectNode)) == {"select.near", "select.wide"}
    wide = graph.node("attend.wide")
    assert isinstance(wide, AttendNode)
    assert wide.branch.where == conjunction(CAUSAL, Chosen("wide"))
    assert wide.branch.choices == chosen[1:]


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"by": "mlp"}, set()),  # each memory has parameters of its own
        ({"by": "weighted"}, set()),
        ({"kv_per_branch": True}, set()),  # each branch has keys and values of its own
        ({"second": patterns.window(64)}, {"compress.b_summary.keys", "compress.b_summary.values"}),
    ],
)
def test_different_work_is_not_shared(changes: dict[str, object], shared: set[str]) -> None:
    graph = _twice(**changes)  # type: ignore[arg-type]
    graph.verify()
    owner = ".b_compressed" if "kv_per_branch" in changes else ""
    memories = {f"compress.b_summary.{part}{owner}" for part in ("keys", "values")}
    expected = {*memories, "attend.b_compressed", "importance.b_selected", "attend.b_selected", "select.b_selected"}
    assert set(graph.nodes) >= expected - shared
    assert not shared & set(graph.nodes)


def test_choices_of_different_sizes_share_their_scores_alone() -> None:
    few, many = (patterns.choice(name, count=count, score=PooledScore("mean")) for name, count in (("few", 2), ("many", 4)))
    branches = (patterns.branch(each.name, conjunction(CAUSAL, Chosen(each.name)), choices=(each,)) for each in (few, many))
    graph = share_equal_work(lower(patterns.pattern("p", *branches, output=Output("gate", ("few", "many")))))
    graph.verify()
    assert set(graph.of_kind(ImportanceNode)) == {"importance.few"}
    assert set(graph.of_kind(SelectNode)) == {"select.few", "select.many"}


def test_choices_by_scores_the_caller_gives_are_not_shared() -> None:
    chosen = tuple(patterns.choice(name, score=GivenScores()) for name in ("a", "b"))
    branches = (patterns.branch(each.name, conjunction(CAUSAL, Chosen(each.name)), choices=(each,)) for each in chosen)
    graph = share_equal_work(lower(patterns.pattern("p", *branches, output=Output("gate", ("a", "b")))))
    assert set(graph.of_kind(SelectNode)) == {"select.a", "select.b"}


def test_learned_sinks_are_not_shared() -> None:
    branches = tuple(patterns.branch(each, CAUSAL, sink=True) for each in "ab")
    graph = share_equal_work(lower(patterns.pattern("p", *branches, output=Output("gate", ("a", "b")))))
    assert set(graph.of_kind(AttendNode)) == {"attend.a", "attend.b"}
    assert sum(node.role == "sinks" for node in graph.of_kind(InputNode).values()) == 2


# -- derive_slot_visibility -------------------------------------------------------------------------------------------------

LENGTH = 24


@pytest.mark.parametrize("where", graph_patterns.WHERES)
@pytest.mark.parametrize(("block", "stride"), [(8, 4), (4, 4), (2, 3)])
def test_a_slot_is_visible_when_all_it_covers_is(where: relation.Condition, block: int, stride: int) -> None:
    pattern = patterns.pattern("p", patterns.branch("a", where, Compress("s", block, stride, "mean")))
    graph = derive_slot_visibility(lower(pattern))
    node, edge = graph.node("attend.a"), graph.edges["compress.s.keys", "attend.a"]
    assert isinstance(node, AttendNode)
    assert edge == StaticEdge(node.slot_where, 1, stride, "pairs")  # type: ignore[arg-type]
    for i in range(LENGTH):
        for slot in range((LENGTH - block) // stride + 1):
            environment = {"i": i, "j": slot, "h": 0, "N": LENGTH, "heads": 1, "kv_heads": 1, "same_document": True}
            covered = all(relation.allows(where, i, token, 0, LENGTH) for token in range(slot * stride, slot * stride + block))
            assert relation.evaluate(node.slot_where, environment) == covered  # type: ignore[arg-type]


def test_branches_over_tokens_have_no_slots() -> None:
    graph = derive_slot_visibility(lower(patterns.nsa()))
    derived = {name: node.slot_where is not None for name, node in graph.of_kind(AttendNode).items()}
    assert derived == {"attend.compressed": True, "attend.selected": False, "attend.windowed": False}


# -- the examples -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.nsa")), ids=lambda path: path.stem)
def test_every_example_has_a_legal_graph(path: Path) -> None:
    spec = load_spec(path)
    for name in spec.patterns:
        graph = run_passes(lower(spec.pattern(name)))
        assert {node.branch.name for node in graph.of_kind(AttendNode).values()} >= set(spec.pattern(name).output.branches)
