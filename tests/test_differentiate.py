"""The gradient graph: what it holds, and that its relations are the forward's transposed, by brute force."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import graph_patterns
import islpy as isl
import numpy as np
import patterns
import pytest
import strategies
from golden_files import check_golden
from hypothesis import given, settings

from nsa_dsl.export import integer_set, to_dot
from nsa_dsl.graph import (
    AttendNode,
    BackwardNode,
    BlockGraph,
    ChoiceEdge,
    CombineGradNode,
    CompressGradNode,
    CotangentNode,
    Edge,
    GradientNode,
    InverseChoiceEdge,
    KeyGradNode,
    PointwiseEdge,
    QueryGradNode,
    StaticEdge,
)
from nsa_dsl.integer_set import limited
from nsa_dsl.inverse import shared_slot
from nsa_dsl.loader import load_spec
from nsa_dsl.lower import lower
from nsa_dsl.passes import run_passes
from nsa_dsl.passes.derive_slot_visibility import derive_slot_visibility
from nsa_dsl.passes.differentiate import differentiate
from nsa_dsl.pattern import Compress, GivenIndices, Output, Pattern
from nsa_dsl.relation import CAUSAL, Compare, Condition, Const, Scale, Var, conjunction, evaluate, transposed

EXAMPLES = Path(__file__).parent.parent / "examples"
LENGTH, HEADS = 21, 2


def gradient_graph(pattern: Pattern) -> BlockGraph:
    """The pattern's gradient graph, verified."""
    graph = differentiate(run_passes(lower(pattern)))
    graph.verify()
    return graph


def mask(relation: Condition, rows: int, columns: int, n: int = LENGTH, h: int = 0) -> np.ndarray:
    """The relation over i < rows, j < columns: boolean (rows, columns)."""
    place = {"i": np.arange(rows)[:, None], "j": np.arange(columns)[None, :], "h": h, "N": n, "heads": HEADS, "kv_heads": 1}
    return np.broadcast_to(evaluate(relation, {**place, "same_document": True}), (rows, columns))


def slots_of(memory: Compress, n: int = LENGTH) -> int:
    return max(0, (n - memory.block) // memory.stride + 1)


def twin(graph: BlockGraph, node: QueryGradNode | KeyGradNode) -> tuple[str, AttendNode]:
    """The Attend node whose gradient this is."""
    return next((name, each) for name, each in graph.of_kind(AttendNode).items() if each.branch == node.branch)


# -- what comes out ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.nsa")), ids=lambda path: path.stem)
def test_every_example_has_a_legal_gradient_graph(path: Path) -> None:
    spec = load_spec(path)
    for name in spec.patterns:
        graph = gradient_graph(spec.pattern(name))
        assert {"q", "k", "v"} <= {node.role for node in graph.of_kind(GradientNode).values()}
        check_transposed(graph)


@settings(max_examples=40)
@given(graph_patterns.patterns())
def test_the_forward_graph_stays_whole(pattern: Pattern) -> None:
    forward = run_passes(lower(pattern))
    before = (forward.nodes, forward.edges, forward.passes)
    graph = differentiate(forward)
    graph.verify()
    assert (forward.nodes, forward.edges, forward.passes) == before, "a pass must not change its input"
    assert graph.passes == (*forward.passes, "differentiate")
    assert {name: node for name, node in graph.nodes.items() if not isinstance(node, BackwardNode)} == forward.nodes
    assert {ends: edge for ends, edge in graph.edges.items() if ends[1] in forward.nodes} == forward.edges


def _mlp(kv_per_branch: bool) -> Pattern:
    return patterns.nsa(by="mlp", kv_per_branch=kv_per_branch)


def _two(kind: str, **changes: Any) -> Pattern:
    near, far = patterns.window(4), Compare("<=", Var("j"), patterns.Sum((Var("i"), Const(-4))))
    branches = patterns.branch("near", near, **changes), patterns.branch("far", far)
    return patterns.pattern("two", *branches, output=Output(kind, ("near", "far")))  # type: ignore[arg-type]


def _selected_only(by: str) -> Pattern:
    pattern = patterns.nsa(by=by)
    return replace(pattern, output=Output("single", ("selected",)))


def _two_gates() -> Pattern:
    branches = tuple(patterns.branch(each, CAUSAL) for each in "ab")
    return patterns.pattern("gates", *branches, output=Output("gate", ("a", "b")))


NSA = ("compressed", "selected", "windowed")
EXPECTED: dict[str, tuple[Pattern, set[str], set[str]]] = {
    # pattern, its gradients, its cotangents but for that of the output
    "single": (patterns.causal(), {"q", "k", "v"}, {"lse.only"}),
    "single with a sink": (patterns.single(CAUSAL, sink=True), {"q", "k", "v", "sinks.only"}, {"lse.only"}),
    "gate, kv per branch": (
        patterns.nsa(kv_per_branch=True),
        {"q", "gates", *(f"{each}.{branch}" for each in "kv" for branch in NSA)},
        {f"lse.{branch}" for branch in NSA},
    ),
    "mix": (_two("mix"), {"q", "k", "v", "gates"}, {"lse.near", "lse.far"}),
    "merge": (_two("merge"), {"q", "k", "v"}, {"lse.merge"}),
    "merge with a sink": (_two("merge", sink=True), {"q", "k", "v", "sinks.near"}, {"lse.merge"}),
    "weighted": (
        patterns.nsa(by="weighted"),
        {"q", "k", "v", "gates", "weights.summary.keys", "weights.summary.values"},
        {f"lse.{branch}" for branch in NSA},
    ),
    "mlp": (_mlp(False), {"q", "k", "v", "gates", "slots.summary.keys", "slots.summary.values"}, {f"lse.{branch}" for branch in NSA}),
    # No kernel reads the compressed branch's keys and values: the module outside does.
    "mlp, kv per branch": (
        _mlp(True),
        {"q", "gates", "slots.summary.compressed.keys", "slots.summary.compressed.values"}
        | {f"{each}.{branch}" for each in "kv" for branch in ("selected", "windowed")},
        {f"lse.{branch}" for branch in NSA},
    ),
    "a scored branch that is not combined": (_selected_only("weighted"), {"q", "k", "v"}, {"lse.selected"}),
    "a scored mlp branch that is not combined": (_selected_only("mlp"), {"q", "k", "v"}, {"lse.selected"}),
    "pooled scores": (patterns.moba(), {"q", "k", "v"}, {"lse.only"}),
    "two gates on one branch": (_two_gates(), {"q", "k", "v", "gates"}, {"lse.a"}),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_gradients_are_those_of_what_the_output_depends_on(case: str) -> None:
    pattern, gradients, cotangents = EXPECTED[case]
    graph = gradient_graph(pattern)
    assert set(graph.of_kind(GradientNode)) == {f"gradient.{each}" for each in gradients}
    assert set(graph.of_kind(CotangentNode)) == {"cotangent.out", *(f"cotangent.{each}" for each in cotangents)}
    for name, node in graph.of_kind(GradientNode).items():
        assert name == ".".join(each for each in ("gradient", node.role, node.owner, node.part) if each is not None)


def _summed(graph: BlockGraph, gradient: str) -> set[str]:
    return {producer for producer, _, _ in graph.incoming(f"gradient.{gradient}")}


def test_an_input_sums_over_everything_that_reads_it() -> None:
    graph = gradient_graph(patterns.nsa(by="weighted"))
    assert _summed(graph, "q") == {f"grad.attend.{each}.queries" for each in NSA}
    assert _summed(graph, "k") == {"grad.attend.selected.keys", "grad.attend.windowed.keys", "grad.compress.summary.keys"}
    assert _summed(graph, "v") == {"grad.attend.selected.keys", "grad.attend.windowed.keys", "grad.compress.summary.values"}
    assert _summed(graph, "weights.summary.values") == {"grad.compress.summary.values"}
    assert _summed(graph, "gates") == {"grad.combine"}
    graph = gradient_graph(_mlp(True))
    assert _summed(graph, "slots.summary.compressed.keys") == {"grad.attend.compressed.keys"}
    assert not graph.of_kind(CompressGradNode)
    assert _summed(gradient_graph(_two("merge", sink=True)), "sinks.near") == {"grad.combine"}


def test_branches_over_one_memory_meet_in_its_slots() -> None:
    memory = Compress("s", 4, 2, "mean")
    branches = patterns.branch("all", CAUSAL, memory), patterns.branch("near", patterns.window(9), memory)
    graph = gradient_graph(patterns.pattern("p", *branches, output=Output("mix", ("all", "near"))))
    given = {producer: edge for producer, _, edge in graph.incoming("grad.compress.s.keys")}
    covering = conjunction(
        Compare("<=", Scale(2, Var("j")), Var("i")), Compare("<", Var("i"), patterns.Sum((Scale(2, Var("j")), Const(4))))
    )
    assert given == {f"grad.attend.{each}.keys": StaticEdge(covering, 1, 2, "keys") for each in ("all", "near")}


def test_weights_sum_over_every_branch_that_compresses_with_them() -> None:
    memory = Compress("s", 4, 2, "weighted")
    branches = patterns.branch("all", CAUSAL, memory), patterns.branch("near", patterns.window(9), memory)
    graph = gradient_graph(patterns.pattern("p", *branches, output=Output("mix", ("all", "near")), kv_per_branch=True))
    assert _summed(graph, "weights.s.keys") == {"grad.compress.s.keys.all", "grad.compress.s.keys.near"}
    assert _summed(graph, "k.near") == {"grad.compress.s.keys.near"}


def test_two_gates_weigh_one_branch_whose_gradients_are_made_once() -> None:
    graph = gradient_graph(_two_gates())
    assert graph.node("grad.combine") == CombineGradNode("gate", ("attend.a", "attend.a"))
    assert len(graph.of_kind(QueryGradNode)) == len(graph.of_kind(KeyGradNode)) == 1


def test_rows_of_a_merge_are_the_merged_ones() -> None:
    graph = gradient_graph(_two("merge"))
    for name in ("grad.combine", "grad.attend.near.queries", "grad.attend.far.keys"):
        read = {producer for producer, _, _ in graph.incoming(name)}
        assert "combine" in read
        assert not read & {"attend.near", "attend.far"}


def test_what_the_output_does_not_need_has_no_gradient() -> None:
    dead = patterns.branch("dead", CAUSAL, Compress("s", 4, 4, "weighted"), sink=True)
    graph = differentiate(derive_slot_visibility(lower(patterns.pattern("p", dead, patterns.branch("live", CAUSAL)))))
    graph.verify()
    assert set(graph.of_kind(GradientNode)) == {"gradient.q", "gradient.k", "gradient.v"}
    assert set(graph.of_kind(KeyGradNode)) == {"grad.attend.live.keys"}


def test_golden_gradient_graph() -> None:
    check_golden("graph/nsa_gradient.dot", to_dot(gradient_graph(patterns.nsa(l=32, d=16, b=64, n=16, w=512))))


# -- brute force ------------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(strategies.relations())
def test_a_transposed_relation_allows_what_the_relation_did(relation: Condition) -> None:
    for h in range(HEADS):
        forward, backward = mask(relation, 9, 7, h=h), mask(transposed(relation), 7, 9, h=h)
        assert np.array_equal(backward, forward.T)


def visible(node: AttendNode, h: int) -> np.ndarray:
    """(queries, keys or slots): by definition what a branch without choices sees; with them, what they may take."""
    tokens = mask(node.may_where if node.branch.choices else node.branch.where, LENGTH, LENGTH, h=h)
    memory = node.branch.memory
    if not isinstance(memory, Compress):
        return tokens
    starts = [slot * memory.stride for slot in range(slots_of(memory))]
    return np.array([tokens[:, start : start + memory.block].all(1) for start in starts]).reshape(len(starts), LENGTH).T


def check_transposed(graph: BlockGraph) -> None:
    """Every relation of the transposed graph is the forward's mask, turned."""
    for name, node in graph.of_kind(KeyGradNode).items():
        memory = node.branch.memory
        stride, keys = (memory.stride, slots_of(memory)) if isinstance(memory, Compress) else (1, LENGTH)
        attend, forward = twin(graph, node)
        rows = {"cotangent.out", "grad.combine", "input.q"} | ({attend} & {producer for producer, _, _ in graph.incoming(name)})
        edges = {producer: edge for producer, _, edge in graph.incoming(name) if isinstance(edge, StaticEdge)}
        assert edges.keys() - {"combine"} == rows
        assert (attend in edges) != ("combine" in edges)
        assert len(set(edges.values())) == 1
        edge = edges["input.q"]
        assert (edge.consumer_unit, edge.producer_unit, edge.along) == (stride, 1, "inverse")
        for h in range(HEADS):
            assert np.array_equal(mask(edge.relation, keys, LENGTH, h=h), visible(forward, h).T)
            for mine, other in ((node.static_where, forward.static_where), (node.may_where, forward.may_where)):
                assert np.array_equal(mask(mine, LENGTH, LENGTH, h=h), mask(other, LENGTH, LENGTH, h=h).T)
        for producer, _, inverse in graph.incoming(name):
            if isinstance(inverse, InverseChoiceEdge):
                check_inverse_choice(inverse, graph.edges[producer, attend])


def check_inverse_choice(inverse: InverseChoiceEdge, forward: Edge) -> None:
    assert isinstance(forward, ChoiceEdge)
    assert (inverse.choice, inverse.block) == (forward.choice, forward.block)
    blocks = -(-LENGTH // forward.block)
    assert np.array_equal(mask(inverse.may, blocks, LENGTH), mask(forward.may, LENGTH, blocks).T)
    assert np.array_equal(mask(inverse.must, blocks, LENGTH), mask(forward.must, LENGTH, blocks).T)


@settings(max_examples=40)
@given(graph_patterns.patterns())
def test_keys_gather_over_the_transposed_mask(pattern: Pattern) -> None:
    check_transposed(gradient_graph(pattern))


@settings(max_examples=40)
@given(graph_patterns.patterns())
def test_queries_walk_as_the_forward_does(pattern: Pattern) -> None:
    graph = gradient_graph(pattern)
    for name, node in graph.of_kind(QueryGradNode).items():
        attend, forward = twin(graph, node)
        assert (node.static_where, node.may_where, node.slot_where) == (forward.static_where, forward.may_where, forward.slot_where)
        walked = {producer: edge for producer, _, edge in graph.incoming(name) if not isinstance(edge, PointwiseEdge)}
        assert walked == {producer: edge for producer, _, edge in graph.incoming(attend) if not isinstance(edge, PointwiseEdge)}


MEMORIES = [(8, 4), (4, 4), (2, 3), (3, 1), (7, 2), (25, 5)]


@pytest.mark.parametrize("by", ["mean", "max", "weighted"])
@pytest.mark.parametrize(("block", "stride"), MEMORIES)
def test_tokens_gather_from_the_slots_that_cover_them(block: int, stride: int, by: str) -> None:
    memory = Compress("s", block, stride, by)  # type: ignore[arg-type]
    graph = gradient_graph(patterns.pattern("p", patterns.branch("a", CAUSAL, memory)))
    for part, source in (("keys", "input.k"), ("values", "input.v")):
        given = {producer: edge for producer, _, edge in graph.incoming(f"grad.compress.s.{part}")}
        edge = given.pop("grad.attend.a.keys")
        assert isinstance(edge, StaticEdge)
        assert (edge.consumer_unit, edge.producer_unit, edge.along) == (1, stride, "keys")
        slots = slots_of(memory)
        covered = [[slot * stride <= token < slot * stride + block for slot in range(slots)] for token in range(LENGTH)]
        assert np.array_equal(mask(edge.relation, LENGTH, slots), np.array(covered).reshape(LENGTH, slots))
        others: dict[str, dict[str, Edge]] = {
            "mean": {},
            "max": {f"compress.s.{part}": edge, source: StaticEdge(shared_slot(memory), 1, 1, "keys")},
            "weighted": {"input.weights.s": PointwiseEdge(), source: PointwiseEdge()},
        }
        assert given == others[by]


@pytest.mark.parametrize(("block", "stride"), MEMORIES)
@pytest.mark.parametrize("length", [0, 1, 3, 8, 20, 21, 26])
def test_tokens_that_share_a_slot(block: int, stride: int, length: int) -> None:
    memory = Compress("s", block, stride, "max")
    together = np.zeros((length, length), dtype=bool)
    for slot in range(slots_of(memory, length)):
        together[slot * stride : slot * stride + block, slot * stride : slot * stride + block] = True
    assert np.array_equal(mask(shared_slot(memory), length, length, n=length), together)


@pytest.mark.parametrize("changes", [{}, {"every": 4}, {"keep_extra": patterns.first(2)}, {"score": GivenIndices()}])
def test_a_block_needs_the_queries_that_can_take_it(changes: dict[str, Any]) -> None:
    graph = gradient_graph(patterns.nsa(**changes))
    edge = graph.edges["select.selected", "grad.attend.selected.keys"]
    assert isinstance(edge, InverseChoiceEdge)
    assert (edge.choice, edge.block) == ("selected", 8)
    every = changes.get("every", 1)
    free = "score" in changes  # the caller may choose what it likes
    able = [[free or 8 * block <= query // every * every for query in range(LENGTH)] for block in range(3)]
    assert np.array_equal(mask(edge.may, 3, LENGTH), np.array(able))
    check_inverse_choice(edge, graph.edges["select.selected", "attend.selected"])
    with limited() as context:
        points: list[tuple[int, ...]] = []
        fixed = integer_set(edge, context).fix_val(isl.dim_type.param, 0, LENGTH).project_out(isl.dim_type.param, 0, 4)
        fixed.foreach_point(lambda point: points.append(tuple(point.get_coordinate_val(isl.dim_type.set, k).to_python() for k in (0, 1))))
    assert sorted(points) == [tuple(each) for each in np.argwhere(able).tolist()]
