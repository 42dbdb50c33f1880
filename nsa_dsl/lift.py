"""From what tokens a query sees to which compressed slots: a slot is visible when every token it covers is.

causal, block 32, stride 16:   j <= i   becomes   16 * t + 31 <= i
"""

from __future__ import annotations

from functools import lru_cache

import islpy as isl

from nsa_dsl.integer_set import TooComplex, from_set, limited, to_set
from nsa_dsl.pattern import Branch, Compress, NotSupported
from nsa_dsl.relation import Condition, Const, FloorDiv, SameDocument, Scale, Term, Var, conjunction, rewrite, walk
from nsa_dsl.terms import split_atoms, sum_of

_MOST_TOKENS_APART = 128
"""The longest block whose tokens are asked one by one where isl gives up."""


@lru_cache(maxsize=64)  # proofs, pictures and kernels ask for the same ones
def lift_to_slots(relation: Condition, block: int, stride: int) -> Condition:
    """The slots that query i sees: j is the slot's index, slot j covers tokens [j * stride, j * stride + block).

    Right for slots that exist: j * stride + block <= N. An intersection with SameDocument keeps that atom: it then says that
    every token of the slot lies in the query's document. Raises ValueError for a choice, and for SameDocument inside a union
    or a difference, which no condition on whole slots says; TooComplex for a relation that isl gives up on, over long blocks.
    """
    static, atoms = split_atoms(relation)
    if any(isinstance(each, SameDocument) for each in walk(static)):
        raise ValueError("`document` over a compressed memory may only be intersected with")
    try:
        lifted = _lift(static, block, stride)
    except TooComplex:
        if block > _MOST_TOKENS_APART:
            raise
        positions = (sum_of(Scale(stride, Var("j")), Const(offset)) for offset in range(block))
        lifted = conjunction(*(rewrite(static, {"j": each}) for each in positions))
    return conjunction(lifted, *atoms)


def visible_slots(branch: Branch, tokens: Condition) -> Condition:
    """`lift_to_slots` for a branch over a compressed memory. tokens: its `where`, or a bound of it. Raises NotSupported for what
    is too hard to derive, and as lift_to_slots does."""
    if not isinstance(branch.memory, Compress):
        raise ValueError(f"branch {branch.name} attends to tokens")
    try:
        return lift_to_slots(tokens, branch.memory.block, branch.memory.stride)
    except TooComplex:
        simpler = f"which slots of {branch.memory.name} a query sees is too hard to derive; write a simpler relation or shorter blocks"
        raise NotSupported(f"branch {branch.name}: {simpler}") from None


def slot_count(memory: Compress) -> Term:
    """How many slots there are, as a term in N; at most 0 where not one block is whole."""
    return sum_of(FloorDiv(sum_of(Var("N"), Const(-memory.block)), memory.stride), Const(1))


def key_positions(branch: Branch) -> Term:
    """How many keys there are for a branch, as a term in N: tokens or slots."""
    return slot_count(branch.memory) if isinstance(branch.memory, Compress) else Var("N")


def _lift(relation: Condition, block: int, stride: int) -> Condition:
    with limited() as context:
        forbidden = to_set(relation, context).complement()
        covered = isl.Map(f"{{ [i, j] -> [i, j'] : {stride} j' <= j < {stride} j' + {block} }}", context=context)
        domain = isl.Set(
            "[N, h, heads, kv_heads] -> { [i, j] : 0 <= i < N and 0 <= j and"
            f" {stride} j + {block} <= N and 0 <= h < heads and 1 <= kv_heads <= heads }}",
            context=context,
        )
        hidden = forbidden.intersect(isl.Set("[N] -> { [i, j] : 0 <= i < N and 0 <= j < N }", context=context)).apply(covered)
        visible = domain.subtract(hidden)
        for index, name in enumerate(("i", "j")):
            visible = visible.set_dim_name(isl.dim_type.set, index, name)
        return from_set(visible, domain)


def covered_tokens(slots: Condition, block: int, stride: int) -> Condition:
    """The token pairs that a relation on slots lets a query see: those whose key some visible slot covers.

    An intersection with SameDocument keeps that atom. Raises TooComplex, and ValueError as lift_to_slots does.
    """
    static, atoms = split_atoms(slots)
    with limited() as context:
        covered = isl.Map(f"{{ [i, j] -> [i, j'] : {stride} j <= j' < {stride} j + {block} }}", context=context)
        exists = isl.Set(f"[N] -> {{ [i, j] : 0 <= i < N and 0 <= j and {stride} j + {block} <= N }}", context=context)
        tokens = to_set(static, context).intersect(exists).apply(covered)
        for index, name in enumerate(("i", "j")):
            tokens = tokens.set_dim_name(isl.dim_type.set, index, name)
        domain = isl.Set(
            "[N, h, heads, kv_heads] -> { [i, j] : 0 <= i < N and 0 <= j < N and 0 <= h < heads and 1 <= kv_heads <= heads }",
            context=context,
        )
        return conjunction(from_set(tokens, domain), *atoms)
