"""What a pattern or a model asserts, proved, refuted or left open.

Static parts are decided exactly for every sequence length. Where data decides, everything that could be chosen (may) and
what is always chosen (must) bound the answer; a claim between the two is reported as not decided, never as proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np

from nsa_dsl.choice_bounds import bounded
from nsa_dsl.count import count_keys
from nsa_dsl.integer_set import TooComplex
from nsa_dsl.lift import covered_tokens, lift_to_slots, slot_count
from nsa_dsl.pairs import Pair, counterexample, disjoint
from nsa_dsl.pattern import Bound, Branch, BranchScore, Choice, Claim, Compress, Model, Pattern, Reach, Within
from nsa_dsl.reach import unreached
from nsa_dsl.relation import CAUSAL, Compare, Condition, FloorDiv, Term, Var, conjunction, disjunction, symbols

__all__ = ["Pair", "Verdict", "check_claims", "counterexample", "disjoint", "leaks", "visible_pairs"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """text: the claim as written. detail: the counterexample, the number that was counted, or why it stays open."""

    text: str
    status: Literal["proved", "refuted", "undecided"]
    detail: str


def check_claims(subject: Pattern | Model, *, heads: int = 8, kv_heads: int = 1) -> list[Verdict]:
    """A verdict for each claim, in the order written. heads, kv_heads: for densities and reach of
    per-head relations."""
    return [_check(claim, subject, heads, kv_heads) for claim in subject.claims]


def _check(claim: Claim, subject: Pattern | Model, heads: int, kv_heads: int) -> Verdict:
    patterns = [layer.pattern for layer in subject.layers] if isinstance(subject, Model) else [subject]
    try:
        match claim:
            case Within():
                return _check_within(claim, dict.fromkeys(patterns))
            case Bound():
                return _check_bound(claim, patterns, heads, kv_heads)
            case Reach():
                return _check_reach(claim, patterns if isinstance(subject, Model) else patterns * claim.layers, heads)
            case _:
                assert_never(claim)
    except TooComplex as error:
        return Verdict(claim.text, "undecided", f"not decided: {error}")


def _check_within(claim: Within, patterns: Mapping[Pattern, None]) -> Verdict:
    for pattern in patterns:
        for branch in pattern.outputs:
            for must in (True, False):
                pair = counterexample(visible_pairs(pattern, branch, must=must), claim.relation)
                if pair is not None:
                    seen = str(pair) if must else str(pair).replace(" sees ", " may see ")
                    return Verdict(claim.text, "refuted", f"{seen} (branch {branch.name} of {pattern.name})")
        if counterexample(claim.relation, CAUSAL) is None:
            for detail in leaks(pattern):
                return Verdict(claim.text, "refuted", detail)
    return Verdict(claim.text, "proved", "for every sequence length")


def leaks(pattern: Pattern) -> list[str]:
    """Each way in which a later token reaches an output, with its smallest counterexample: through a branch that is seen, or
    one that only scores, or through queries that choose together, unless the pattern allows that. Raises TooComplex."""
    found = []
    live = _live_branches(pattern)
    for branch in live:
        pair = counterexample(visible_pairs(pattern, branch, must=False), CAUSAL)
        if pair is not None:
            found.append(f"{pair} (branch {branch.name})")
    if not pattern.allow_lookahead:
        for choice in (each for branch in live for each in branch.choices):
            if choice.queries > 1:
                pair = counterexample(_deciding_queries(choice), CAUSAL)
                if pair is not None:
                    found.append(f"N = {pair.n}: query {pair.j} helps to choose for query {pair.i} ({choice.name})")
    return found


def _deciding_queries(choice: Choice) -> Condition:
    """Pairs (i, j): what query i sees depends on query j, of its tile."""
    query, key = (FloorDiv(Var(name), choice.queries) for name in ("i", "j"))
    return Compare("==", query, key)


def _live_branches(pattern: Pattern) -> list[Branch]:
    """The outputs and what scores for them."""
    live = {branch.name: branch for branch in pattern.outputs}
    waiting = list(live.values())
    while waiting:
        for choice in waiting.pop().choices:
            if isinstance(choice.score, BranchScore) and choice.score.branch not in live:
                live[choice.score.branch] = pattern.branch(choice.score.branch)
                waiting.append(live[choice.score.branch])
    return list(live.values())


def visible_pairs(pattern: Pattern, branch: Branch, *, must: bool) -> Condition:
    """The token pairs that the branch sees whatever is chosen (must), or for some choice; through slots for a compressed
    memory. Raises TooComplex."""
    where = _bounded(pattern, branch, must=must)
    if isinstance(branch.memory, Compress):
        block, stride = branch.memory.block, branch.memory.stride
        return covered_tokens(lift_to_slots(where, block, stride), block, stride)
    return where


def _bounded(pattern: Pattern, branch: Branch, *, must: bool) -> Condition:
    """`where` with its choices replaced by a bound, over tokens."""
    choices = {each.name: each for other in pattern.branches for each in other.choices}
    return bounded(branch.where, choices, must=must)


def _check_bound(claim: Bound, patterns: list[Pattern], heads: int, kv_heads: int) -> Verdict:
    """Density: keys seen (a slot is one key) of all output branches, over N * N, the mean of heads and layers."""
    if claim.quantity == "kv":
        return Verdict(claim.text, "undecided", "not decided: bytes depend on head sizes and number formats, which a spec does not say")
    n = claim.length
    bounds = {each: _densities(each, n, heads, kv_heads) for each in dict.fromkeys(patterns)}
    least, most = (float(np.mean([bounds[each][side] for each in patterns])) for side in (0, 1))
    if most <= claim.bound:
        return Verdict(claim.text, "proved", f"at most {most:.4g} at {n:,} tokens")
    if least > claim.bound:
        return Verdict(claim.text, "refuted", f"at least {least:.4g} at {n:,} tokens")
    return Verdict(claim.text, "undecided", f"not decided: between {least:.4g} and {most:.4g} at {n:,} tokens, by what is chosen")


def _densities(pattern: Pattern, n: int, heads: int, kv_heads: int) -> tuple[float, float]:
    """The least and the greatest share of pairs that the output branches see at length n."""
    least = most = 0.0
    for branch in pattern.outputs:
        may = _keys_seen(_bounded(pattern, branch, must=False), branch, n, heads, kv_heads)
        must = _keys_seen(_bounded(pattern, branch, must=True), branch, n, heads, kv_heads) if branch.choices else may
        least += float(must.mean()) / n
        most += float(np.minimum(may, must + _most_chosen(branch)).mean()) / n
    return least, most


def _keys_seen(where: Condition, branch: Branch, n: int, heads: int, kv_heads: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    keys: Term = Var("N")
    if isinstance(branch.memory, Compress):
        where, keys = lift_to_slots(where, branch.memory.block, branch.memory.stride), slot_count(branch.memory)
    return count_keys(where, n, heads=heads, kv_heads=kv_heads, keys=keys)


def _most_chosen(branch: Branch) -> int:
    """The most keys that choices add to what is always seen: every block of `top` at most; a huge number where data alone
    decides how many."""
    if any(each.rule != "top" or each.count is None for each in branch.choices):
        return 2**40
    return sum((each.count or 0) * each.block for each in branch.choices)


def _check_reach(claim: Reach, patterns: list[Pattern], heads: int) -> Verdict:
    """Over every run of that many layers. Keys that causality forbids in every layer are not asked for."""
    distinct = list(dict.fromkeys(patterns))
    bounds = {each: tuple(disjunction(*_seen(each, must)) for must in (True, False)) for each in distinct}
    goal = claim.relation
    if all(counterexample(may, CAUSAL) is None for _, may in bounds.values()):
        goal = conjunction(goal, CAUSAL)
    runs = {tuple(patterns[start : start + claim.layers]) for start in range(max(1, len(patterns) - claim.layers + 1))}
    open_pair: Pair | None = None
    for run in runs:
        pair = unreached(goal, [bounds[each][0] for each in run], heads)
        if pair is None:
            continue
        surely = unreached(goal, [bounds[each][1] for each in run], heads)
        if surely is not None:
            return Verdict(claim.text, "refuted", f"N = {surely.n}: key {surely.j} does not reach query {surely.i}")
        open_pair = pair
    if open_pair is not None:
        by_data = f"N = {open_pair.n}: whether key {open_pair.j} reaches query {open_pair.i} depends on what is chosen"
        return Verdict(claim.text, "undecided", f"not decided: {by_data}")
    per_head = any("h" in symbols(may) for _, may in bounds.values())
    return Verdict(claim.text, "proved", f"for every sequence length{f', {heads} heads' if per_head else ''}")


def _seen(pattern: Pattern, must: bool) -> Iterator[Condition]:
    return (visible_pairs(pattern, branch, must=must) for branch in pattern.outputs)
