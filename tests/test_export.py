"""The block-dependency graph as JSON, Graphviz text, networkx graph and integer sets."""

from __future__ import annotations

import json
from dataclasses import replace

import graph_patterns
import islpy as isl
import networkx
import patterns
import pytest
from golden_files import check_golden
from hypothesis import given, settings

from nsa_dsl.export import integer_set, to_dot, to_json, to_networkx
from nsa_dsl.graph import (
    StaticEdge,
)
from nsa_dsl.integer_set import limited
from nsa_dsl.lower import lower
from nsa_dsl.passes import run_passes
from nsa_dsl.pattern import Pattern
from nsa_dsl.relation import FULL

EXPORTED = {
    "nsa": patterns.nsa(l=32, d=16, b=64, n=16, w=512, by="mlp"),
    "asa_global": patterns.asa_global(b=16, n=32),
    "moba": patterns.moba(),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_golden_exports(name: str) -> None:
    graph = run_passes(lower(EXPORTED[name]))
    check_golden(f"graph/{name}.json", to_json(graph))
    check_golden(f"graph/{name}.dot", to_dot(graph))


@settings(max_examples=60)
@given(graph_patterns.patterns())
def test_exports_hold_the_same_graph(pattern: Pattern) -> None:
    graph = lower(pattern)
    plain, document = to_networkx(graph), json.loads(to_json(graph))
    assert networkx.is_directed_acyclic_graph(plain)
    assert set(plain) == set(graph.nodes)
    assert set(plain.edges) == set(graph.edges)
    assert {each.pop("name"): each for each in document["nodes"]} == dict(plain.nodes(data=True))
    assert {(each.pop("from"), each.pop("to")): each for each in document["edges"]} == {ends: plain.edges[ends] for ends in plain.edges}
    assert document["schema"] == 1
    assert to_json(lower(pattern)) == to_json(graph)
    assert to_dot(graph).count(" -> ") == len(graph.edges)


def test_dot_quotes_what_graphviz_would_read() -> None:
    pattern = replace(patterns.causal(), name='a"b\\c')
    assert to_dot(lower(pattern)).startswith('digraph "a\\"b\\\\c" {\n')


def test_an_edges_integer_set_counts_units_inside_the_sequence() -> None:
    edge = StaticEdge(FULL, 4, 8, "keys")
    with limited() as context:
        points = integer_set(edge, context).fix_val(isl.dim_type.param, 0, 17)
        found: list[tuple[int, int]] = []
        points.project_out(isl.dim_type.param, 0, 4).foreach_point(
            lambda point: found.append(tuple(point.get_coordinate_val(isl.dim_type.set, k).to_python() for k in (0, 1)))  # type: ignore[arg-type]
        )
    assert sorted(found) == [(i, j) for i in range(5) for j in range(3)]
