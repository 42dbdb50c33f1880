"""Edges the other way round: which units of the consumer a unit of the producer serves, and so whose gradients it gathers."""

from __future__ import annotations

from nsa_dsl.graph_nodes import ChoiceEdge, InverseChoiceEdge, StaticEdge
from nsa_dsl.pattern import Compress
from nsa_dsl.relation import Compare, Condition, Const, Extreme, FloorDiv, Scale, Sum, Var, conjunction, transposed


def inverse_static(edge: StaticEdge) -> StaticEdge:
    """Unit i of the old producer needs unit j of the old consumer when `relation` held for (j, i)."""
    along = "inverse" if edge.along == "pairs" else edge.along
    return StaticEdge(transposed(edge.relation), edge.producer_unit, edge.consumer_unit, along)


def inverse_choice(edge: ChoiceEdge) -> InverseChoiceEdge:
    """Key block i needs the queries j that took it."""
    return InverseChoiceEdge(edge.choice, transposed(edge.may), transposed(edge.must), edge.block)


def shared_slot(memory: Compress) -> Condition:
    """Some slot of the memory covers both token i and token j.

    That is so when the last slot that begins at or before the earlier token, and exists, reaches the later one.
    """
    pair = (Var("i"), Var("j"))
    latest = FloorDiv(Sum((Var("N"), Const(-memory.block))), memory.stride)
    slot = Extreme("min", (FloorDiv(Extreme("min", pair), memory.stride), latest))
    end = Sum((Scale(memory.stride, slot), Const(memory.block)))
    return conjunction(Compare("<=", Const(memory.block), Var("N")), Compare("<", Extreme("max", pair), end))
