"""Passes: block-dependency graph -> block-dependency graph. One file a pass; valid in, valid out; the input is never changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from nsa_dsl.graph import BlockGraph
from nsa_dsl.passes.derive_slot_visibility import derive_slot_visibility
from nsa_dsl.passes.drop_dead_branches import drop_dead_branches
from nsa_dsl.passes.share_equal_work import share_equal_work

Pass: TypeAlias = Callable[[BlockGraph], BlockGraph]

PASSES: tuple[Pass, ...] = (
    # First, so that nothing is compared with, or derived for, a branch that is never computed.
    drop_dead_branches,
    # Before derivations, which cost isl time for each node that is left.
    share_equal_work,
    # Last: whatever it derives belongs to the nodes that stay.
    derive_slot_visibility,
)


def run_passes(graph: BlockGraph) -> BlockGraph:
    """The graph after all passes, checked before and after each. Raises GraphError."""
    graph.verify()
    for each in PASSES:
        graph = each(graph)
        graph.verify()
    return graph
