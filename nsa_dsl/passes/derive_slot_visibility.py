"""Derive which slots of a compressed memory a query sees from which tokens it sees."""

from __future__ import annotations

from dataclasses import replace

from nsa_dsl.graph import AttendNode, BlockGraph, CompressNode, StaticEdge
from nsa_dsl.lift import visible_slots
from nsa_dsl.pattern import Compress


def derive_slot_visibility(graph: BlockGraph) -> BlockGraph:
    """The graph with `slot_where` on every branch over a compressed memory: slot j is visible to query i when every token it
    covers is (NSA: `causal` becomes `stride * j + block - 1 <= i`). The edges from the memory carry the same relation.

        compress.s ─(j <= i: tokens)─▶ attend.c     ──▶     compress.s ─(16 * j + 31 <= i: slots)─▶ attend.c

    Where a choice decides, the candidates are lifted: the slots a query may see. Branches over tokens are left alone. Raises
    NotSupported where the slots cannot be derived.
    """
    nodes, edges = graph.nodes, graph.edges
    for name, node in graph.of_kind(AttendNode).items():
        memory = node.branch.memory
        if isinstance(memory, Compress):
            visible = visible_slots(node.branch, node.may_where)
            nodes[name] = replace(node, slot_where=visible)
            for producer, source, _ in graph.incoming(name):
                if isinstance(source, CompressNode):
                    edges[producer, name] = StaticEdge(visible, 1, memory.stride, "pairs")
    return BlockGraph(graph.pattern, nodes, edges, (*graph.passes, "derive_slot_visibility"))
