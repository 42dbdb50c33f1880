"""Questions about static relations that hold for every sequence length, answered exactly: a proof or the smallest
counterexample."""

from __future__ import annotations

from dataclasses import dataclass

import islpy as isl

from nsa_dsl.integer_set import limited, to_set
from nsa_dsl.relation import Condition, SameDocument, Truth, conjunction, evaluate, negate, rewrite

_OPERATIONS = 6_000_000


@dataclass(frozen=True, slots=True)
class Pair:
    """Query i and key j of head h at sequence length n. same_document: whether they lie in one document of a packed batch."""

    n: int
    i: int
    j: int
    h: int
    heads: int = 1
    kv_heads: int = 1
    same_document: bool = True

    def allowed_by(self, relation: Condition) -> bool:
        """Whether the relation allows this pair."""
        environment = {"i": self.i, "j": self.j, "h": self.h, "N": self.n, "heads": self.heads, "kv_heads": self.kv_heads}
        inside = 0 <= self.i < self.n and 0 <= self.j < self.n
        return inside and bool(evaluate(relation, {**environment, "same_document": self.same_document}))

    def __str__(self) -> str:
        head = f" of head {self.h}" if self.heads > 1 else ""
        apart = "" if self.same_document else ", of another document"
        return f"N = {self.n}: query {self.i}{head} sees key {self.j}{apart}"


def counterexample(inner: Condition, outer: Condition) -> Pair | None:
    """A pair that inner allows and outer does not, the smallest by N, then i, j, h; None if there is none at any length.

    Pairs of one document and of two are both considered. Raises TooComplex, and ValueError for a choice.
    """
    return smallest(conjunction(inner, negate(outer)))


def disjoint(left: Condition, right: Condition) -> Pair | None:
    """The smallest pair that both allow; None if there is none at any length. Raises as counterexample does."""
    return smallest(conjunction(left, right))


def smallest(relation: Condition) -> Pair | None:
    """The smallest pair that the relation allows, by N, then i, j, h; None if it is empty. Raises as counterexample does."""
    found = [pair for same in (True, False) if (pair := _smallest(relation, same)) is not None]
    return min(found, key=lambda pair: (pair.n, pair.i, pair.j, pair.h)) if found else None


def _smallest(relation: Condition, same_document: bool) -> Pair | None:
    """Two documents hold at least one position each, so i and j differ."""
    known = rewrite(relation, {}, {SameDocument(): Truth(same_document)})
    if not same_document and known == relation:
        return None
    with limited(_OPERATIONS) as context:
        domain = isl.Set(
            "[N, h, heads, kv_heads] -> { [i, j] : 0 <= i < N and 0 <= j < N and 0 <= h < heads and 1 <= kv_heads <= heads"
            f"{'' if same_document else ' and i != j'} }}",
            context=context,
        )
        pairs = to_set(known, context).intersect(domain)
        pair = smallest_pair(pairs, same_document)
    if pair is not None and not pair.allowed_by(relation):
        raise AssertionError(f"isl's counterexample does not hold: {pair}")
    return pair


def smallest_pair(pairs: isl.Set, same_document: bool = True) -> Pair | None:
    """The smallest member of a set over [i, j] with the usual parameters, by N, then i, j, h; None if it is empty."""
    if pairs.is_empty():
        return None
    pairs = pairs.insert_dims(isl.dim_type.set, 2, 3).insert_dims(isl.dim_type.set, 0, 1)
    for name, dimension in (("N", 0), ("h", 3), ("heads", 4), ("kv_heads", 5)):
        parameter = pairs.find_dim_by_name(isl.dim_type.param, name)
        pairs = pairs.equate(isl.dim_type.param, parameter, isl.dim_type.set, dimension)
    point = pairs.project_out_all_params().lexmin().sample_point()
    n, i, j, h, heads, kv_heads = (point.get_coordinate_val(isl.dim_type.set, index).to_python() for index in range(6))
    return Pair(n, i, j, h, heads, kv_heads, same_document)
