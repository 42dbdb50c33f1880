"""Remove what the output does not need."""

from __future__ import annotations

import networkx

from nsa_dsl.graph import BlockGraph, OutputNode


def drop_dead_branches(graph: BlockGraph) -> BlockGraph:
    """The graph without nodes that reach no output: branches that are neither combined nor scored for a choice that is used,
    their memories, their choices, and inputs only they read.

        q, k, v ─▶ attend.a ─▶ combine ─▶ output          q, k, v ─▶ attend.a ─▶ combine ─▶ output
              └──▶ attend.b                        ──▶
              └──▶ attend.c ◀─ select.c ◀─ scores

    Does not look at relations: a branch that can see nothing stays.
    """
    alive = set(graph.of_kind(OutputNode))
    for output in tuple(alive):
        alive |= networkx.ancestors(graph.digraph, output)
    nodes = {name: node for name, node in graph.nodes.items() if name in alive}
    edges = {ends: edge for ends, edge in graph.edges.items() if ends[1] in alive}
    return BlockGraph(graph.pattern, nodes, edges, (*graph.passes, "drop_dead_branches"))
