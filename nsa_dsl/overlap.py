"""The proof that a merge may join its branches: no query sees one key in two of them."""

from __future__ import annotations

from itertools import combinations

from nsa_dsl.choice_bounds import bounded
from nsa_dsl.integer_set import TooComplex
from nsa_dsl.pairs import disjoint
from nsa_dsl.pattern import NotSupported, Pattern


def refuse_overlap(pattern: Pattern) -> None:
    """A merge is one softmax over the keys of its branches, so no query may see one key in two of them, whatever is chosen.

    Slots and tokens are different keys, and so are slots of different memories. Raises NotSupported with the smallest common
    pair, or when the question is too hard to decide.
    """
    if pattern.output.kind != "merge":
        return
    choices = {choice.name: choice for branch in pattern.branches for choice in branch.choices}
    for left, right in combinations(pattern.outputs, 2):
        if left.memory != right.memory:
            continue
        both = f"merge: branches {left.name} and {right.name}"
        way_out = "write one branch whose relation is the union of theirs"
        try:
            common = disjoint(*(bounded(each.where, choices, must=False) for each in (left, right)))
        except TooComplex:
            raise NotSupported(f"{both} could not be proved disjoint; {way_out}") from None
        if common is not None:
            raise NotSupported(f"{both} may share a key ({common}); {way_out}")
