"""How far information flows through a stack of layers: composed relations, exactly, for every sequence length."""

from __future__ import annotations

from collections.abc import Sequence

import islpy as isl

from nsa_dsl.integer_set import limited, to_set
from nsa_dsl.pairs import Pair, smallest_pair
from nsa_dsl.relation import Condition, SameDocument, Truth, rewrite


def unreached(goal: Condition, layers: Sequence[Condition], heads: int) -> Pair | None:
    """The smallest pair of the goal whose key does not reach its query; None if all do, at any length.

    layers: what each layer's queries see, the first layer first. A layer's heads pool what they see, and every position keeps
    what it has (the residual stream). One document. Raises TooComplex.
    """
    with limited() as context:
        domain = isl.Set(
            f"[N, h, heads, kv_heads] -> {{ [i, j] : 0 <= i < N and 0 <= j < N and 0 <= h < heads = {heads} and 1 <= kv_heads <= heads }}",
            context=context,
        )
        flow = isl.Map("[N] -> { [i] -> [i] : 0 <= i < N }", context=context)
        for layer in layers:
            pairs = to_set(_one_document(layer), context).intersect(domain)
            position = pairs.find_dim_by_name(isl.dim_type.param, "h")
            pairs = pairs.project_out(isl.dim_type.param, position, 1)
            # The last layer's queries come first: i sees k in this layer, and k has seen j before.
            step = isl.Map("{ [i, j] -> [i] }", context=context).reverse()
            sees = step.intersect_range(pairs).apply_range(isl.Map("{ [i, j] -> [j] }", context=context))
            sees = sees.union(isl.Map("[N] -> { [i] -> [i] : 0 <= i < N }", context=context)).coalesce()
            flow = sees.apply_range(flow).coalesce()
        reached = flow.wrap().flatten()
        missing = to_set(_one_document(goal), context).intersect(domain).subtract(reached)
        return smallest_pair(missing)


def _one_document(relation: Condition) -> Condition:
    return rewrite(relation, {}, {SameDocument(): Truth(True)})
