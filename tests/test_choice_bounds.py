"""What a choice may and must take, and what that makes of a branch's relation."""

from __future__ import annotations

from dataclasses import replace

import graph_patterns
import patterns
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_dsl import relation
from nsa_dsl.export import integer_set
from nsa_dsl.graph import (
    AttendNode,
    ChoiceEdge,
)
from nsa_dsl.integer_set import limited
from nsa_dsl.lower import lower
from nsa_dsl.pattern import GivenScores, Output, Pattern, PooledScore
from nsa_dsl.reference import choose
from nsa_dsl.relation import CAUSAL, Chosen, Not, conjunction

N = 9


@settings(max_examples=60)
@given(graph_patterns.patterns(), st.randoms(use_true_random=False))
def test_every_choice_stays_between_static_and_may(pattern: Pattern, random: object) -> None:
    """Whatever is taken between must and may, what a query sees lies between static_where and may_where."""
    graph = lower(pattern)
    for name, node in graph.of_kind(AttendNode).items():
        edges = {edge.choice: edge for _, _, edge in graph.incoming(name) if isinstance(edge, ChoiceEdge)}
        for i in range(N):
            taken = {
                f"chosen:{choice}:{block}": _holds(edge.must, i, block) or (_holds(edge.may, i, block) and random.random() < 0.5)  # type: ignore[attr-defined]
                for choice, edge in edges.items()
                for block in range(N)
            }
            for j in range(N):
                chosen = {f"chosen:{choice}": taken[f"chosen:{choice}:{j // edge.block}"] for choice, edge in edges.items()}
                seen = bool(relation.evaluate(node.branch.where, _environment(i, j) | chosen))
                assert _holds(node.static_where, i, j) <= seen <= _holds(node.may_where, i, j)


@settings(max_examples=60)
@given(graph_patterns.patterns())
def test_kept_blocks_are_candidates(pattern: Pattern) -> None:
    for edge in lower(pattern).edges.values():
        if isinstance(edge, ChoiceEdge):
            for i in range(N):
                for block in range(-(-N // edge.block)):
                    assert _holds(edge.must, i, block) <= _holds(edge.may, i, block)


def test_kept_blocks_are_candidates_as_integer_sets() -> None:
    changed = patterns.nsa(queries=4), patterns.nsa(keep_extra=patterns.back(3))
    for pattern in (patterns.nsa(), patterns.asa_global(), patterns.moba(), *changed):
        for edge in lower(pattern).edges.values():
            if isinstance(edge, ChoiceEdge):
                with limited() as context:
                    kept = integer_set(replace(edge, may=edge.must), context)
                    assert not kept.is_empty()
                    assert kept.is_subset(integer_set(edge, context))
                    assert not integer_set(edge, context).is_subset(kept)


def test_candidates_end_before_the_query_when_blocks_are_pooled() -> None:
    edge = lower(patterns.moba(b=4)).edges["select.only", "attend.only"]
    assert isinstance(edge, ChoiceEdge)
    assert [block for block in range(4) if _holds(edge.may, 6, block)] == [0, 1]
    assert [block for block in range(4) if _holds(edge.may, 7, block)] == [0, 1]
    assert [block for block in range(4) if _holds(edge.must, 7, block)] == [1]
    pooled = patterns.choice("only", block=4, score=PooledScore("mean"))
    graph = lower(patterns.pattern("p", patterns.branch("only", Chosen("only"), choices=(pooled,))))
    pooled_only = graph.edges["select.only", "attend.only"]
    assert isinstance(pooled_only, ChoiceEdge)
    assert [block for block in range(4) if _holds(pooled_only.may, 6, block)] == [0]


def test_blocks_kept_outside_the_count_are_kept_too() -> None:
    edge = lower(patterns.nsa(b=2, keep=patterns.first(1), keep_extra=patterns.back(1))).edges["select.selected", "attend.selected"]
    assert isinstance(edge, ChoiceEdge)
    assert [block for block in range(8) if _holds(edge.must, 7, block)] == [0, 3]


def test_a_run_takes_what_its_first_query_may_and_a_tile_what_its_last_may() -> None:
    def last(**changes: int) -> int:
        edge = lower(patterns.nsa(b=2, keep=None, **changes)).edges["select.selected", "attend.selected"]
        assert isinstance(edge, ChoiceEdge)
        return max(block for block in range(8) if relation.evaluate(edge.may, _environment(5, block) | {"N": 16}))

    assert (last(every=1), last(every=4), last(queries=4)) == (2, 2, 3)


def test_a_subtracted_choice_bounds_the_other_way_round() -> None:
    where = conjunction(CAUSAL, Not(Chosen("selected")))
    subtracted = patterns.branch("selected", where, choices=(patterns.choice(score=GivenScores()),))
    node = lower(patterns.pattern("p", subtracted)).node("attend.selected")
    assert isinstance(node, AttendNode)
    assert node.may_where == CAUSAL
    assert not any(_holds(node.static_where, i, j) for i in range(N) for j in range(N))


def _environment(i: int, j: int) -> dict[str, object]:
    return {"i": i, "j": j, "h": 0, "N": N, "heads": 1, "kv_heads": 1, "same_document": True}


def _holds(condition: relation.Condition, i: int, j: int) -> bool:
    return bool(relation.evaluate(condition, _environment(i, j)))


COARSE = patterns.choice("coarse", score=PooledScore("mean"), block=8, count=2, share="head", keep=patterns.back(1))
FINE = patterns.choice("fine", score=PooledScore("mean"), block=2, count=3, share="head", among="coarse")
HIERARCHY = patterns.pattern(
    "hierarchy",
    *(patterns.branch(each.name, conjunction(CAUSAL, Chosen(each.name)), choices=(each,)) for each in (COARSE, FINE)),
    output=Output("gate", ("coarse", "fine")),
)


@pytest.mark.parametrize(
    "pattern",
    [
        patterns.nsa(n=5),
        patterns.nsa(n=5, every=4, b=4),
        patterns.nsa(n=5, queries=4, b=4),
        patterns.nsa(n=2, keep=None, keep_extra=patterns.back(2)),
        patterns.nsa(rule="over", threshold=0.1),
        patterns.moba(b=4),
        patterns.nsa(n=2, score=PooledScore("minmax"), keep=None, keep_extra=patterns.back(1)),
        HIERARCHY,
    ],
    ids=["top", "runs", "tiles", "keep_extra", "over", "pooled", "pooled_extra", "among"],
)
def test_what_the_reference_chooses_lies_between_must_and_may(pattern: Pattern) -> None:
    length, generator = 38, torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, length, 8, generator=generator) for heads in (2, 1, 1))
    edges = {edge.choice: edge for edge in lower(pattern).edges.values() if isinstance(edge, ChoiceEdge)}
    for name, indices in choose(pattern, q, k, v).items():
        edge = edges[name]
        for i in range(length):
            blocks = torch.arange(-(-length // edge.block))
            environment = {"i": i, "j": blocks, "N": length, "h": 0, "heads": 2, "kv_heads": 1}
            kept, candidates = (relation.evaluate(each, environment) & (blocks >= 0) for each in (edge.must, edge.may))
            for taken in indices[0, :, i // _unit(pattern, name)].tolist():
                chosen = torch.zeros_like(candidates)
                chosen[[each for each in taken if each >= 0]] = True
                assert bool((kept <= chosen).all()), (name, i)
                assert bool((chosen <= candidates).all()), (name, i)


def _unit(pattern: Pattern, name: str) -> int:
    """How many neighbouring queries share the choice."""
    made = next(each for branch in pattern.branches for each in branch.choices if each.name == name)
    return max(made.every, made.queries)
