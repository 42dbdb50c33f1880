"""Patterns built by hand from the types of `nsa_dsl.pattern`, for tests that should not depend on the parser."""

from __future__ import annotations

from typing import Any

from nsa_dsl import relation
from nsa_dsl.pattern import Branch, BranchScore, Choice, Compress, Memory, Output, Pattern, PooledScore, Tokens
from nsa_dsl.relation import CAUSAL, Chosen, Compare, Condition, Const, Scale, Sum, Var, conjunction, disjunction

QUERY, KEY = Var("i"), Var("j")


def window(w: int) -> Condition:
    """The last w keys, the query's own included."""
    return conjunction(Compare("<", Sum((QUERY, Const(-w))), KEY), CAUSAL)


def first(n: int) -> Condition:
    """The first n keys."""
    return Compare("<", KEY, Const(n))


def back(w: int) -> Condition:
    """j > i - w, with nothing said about the future: the `keep` of block units."""
    return Compare("<", Sum((QUERY, Scale(-1, KEY))), Const(w))


def choice(name: str = "selected", **changes: Any) -> Choice:
    """A top choice by the branch `compressed`, shared by groups, with the fields given changed."""
    fields: dict[str, Any] = {
        "rule": "top", "count": 4, "threshold": None, "block": 8, "score": BranchScore("compressed"), "share": "group",
        "reduce": "sum", "every": 1, "queries": 1, "keep": None, "keep_extra": None, "among": None,
    }  # fmt: skip
    return Choice(name=name, **(fields | changes))


def branch(name: str, where: Condition, memory: Memory | None = None, choices: tuple[Choice, ...] = (), **changes: Any) -> Branch:
    """A branch without extras, with the fields given changed."""
    fields: dict[str, Any] = {"scale": None, "softcap": None, "bias": None, "sink": False, "skip": None}
    return Branch(name=name, memory=memory or Tokens(), where=where, choices=choices, **(fields | changes))


def pattern(name: str, *branches: Branch, output: Output | None = None, kv_per_branch: bool = False) -> Pattern:
    """A pattern of these branches; the output is a single branch unless given."""
    memories = tuple(dict.fromkeys(each.memory for each in branches if isinstance(each.memory, Compress)))
    return Pattern(
        name=name, parameters=(), memories=memories, branches=branches, output=output or Output("single", (branches[-1].name,)),
        kv_per_branch=kv_per_branch, allow_lookahead=False, claims=(), text="",
    )  # fmt: skip


def single(where: Condition, **changes: Any) -> Pattern:
    """One branch over the tokens."""
    return pattern("single", branch("only", where, **changes))


def causal() -> Pattern:
    """Every key up to the query."""
    return single(CAUSAL)


def windowed(w: int) -> Pattern:
    """A sliding window of exactly w keys."""
    return single(window(w))


def packed(where: Condition) -> Pattern:
    """One branch that stays inside a document."""
    return single(conjunction(where, relation.SameDocument()))


def nsa(
    l: int = 8,  # noqa: E741 - the paper's name
    d: int = 4,
    b: int = 8,
    n: int = 4,
    w: int = 8,
    by: str = "mean",
    kv_per_branch: bool = False,
    **changes: Any,
) -> Pattern:
    """Native Sparse Attention; changes go to the choice. Forced blocks: the first and the last two, inside n."""
    summary = Compress("summary", l, d, by)  # type: ignore[arg-type]
    keep = disjunction(first(1), back(2))
    chosen = choice(count=n, block=b, **({"keep": keep} | changes))
    return pattern(
        "nsa",
        branch("compressed", CAUSAL, summary),
        branch("selected", conjunction(CAUSAL, Chosen("selected")), choices=(chosen,)),
        branch("windowed", window(w)),
        output=Output("gate", ("compressed", "selected", "windowed")),
        kv_per_branch=kv_per_branch,
    )


def asa_global(b: int = 4, n: int = 3) -> Pattern:
    """The global layer of Alternating Sparse Attention: runs of four queries choose together."""
    chosen = choice(count=n, block=b, every=4, keep=disjunction(first(1), back(1)))
    return pattern(
        "asa_global",
        branch("compressed", CAUSAL, Compress("summary", b, b, "mean")),
        branch("selected", conjunction(CAUSAL, Chosen("selected")), choices=(chosen,)),
        output=Output("gate", ("compressed", "selected")),
    )


def moba(b: int = 8, n: int = 3) -> Pattern:
    """Mixture of Block Attention: every head takes its best blocks by mean-pooled keys, and its own."""
    chosen = choice("only", count=n, block=b, score=PooledScore("mean"), share="head", keep=back(1))
    return pattern("moba", branch("only", conjunction(CAUSAL, Chosen("only")), choices=(chosen,)))
