"""Random patterns for the graph: every memory, score, sharing and output, live and dead branches, repeated ones too."""

from __future__ import annotations

from hypothesis import strategies as st
from patterns import back, branch, choice, first, pattern, window

from nsa_dsl import relation
from nsa_dsl.pattern import (
    Branch,
    BranchScore,
    Choice,
    Compress,
    GivenIndices,
    GivenScores,
    IndexScore,
    Memory,
    Output,
    Pattern,
    PooledScore,
    Score,
    Tokens,
)
from nsa_dsl.relation import CAUSAL, Chosen, Compare, Condition, Const, Not, SameDocument, Var, conjunction, disjunction

WHERES: tuple[Condition, ...] = (
    CAUSAL,
    window(6),
    relation.FULL,
    disjunction(CAUSAL, first(3)),
    conjunction(CAUSAL, SameDocument()),
    Compare("==", relation.Modulo(relation.Sum((Var("i"), relation.Scale(-1, Var("j")))), 3), Const(0)),
)
MEMORIES = tuple(
    Compress(name, block, stride, by)
    for name, block, stride, by in (
        ("a", 4, 2, "mean"), ("b", 4, 2, "mean"), ("c", 8, 4, "max"), ("d", 4, 4, "weighted"), ("e", 4, 4, "mlp"), ("f", 2, 3, "mean")
    )
)  # fmt: skip
PLAIN_SCORES: tuple[Score, ...] = (PooledScore("mean"), PooledScore("minmax"), IndexScore(2, 8), GivenScores(), GivenIndices())


@st.composite
def choices(draw: st.DrawFn, name: str, scored: tuple[str, ...] = (), others: tuple[str, ...] = ()) -> Choice:
    """A choice; scored: compressed branches it may be scored by; others: choices it may choose among."""
    every, queries = draw(st.sampled_from(((1, 1), (4, 1), (1, 4))))
    return choice(
        name,
        block=draw(st.sampled_from((1, 2, 4))),
        score=draw(st.sampled_from((*PLAIN_SCORES, *map(BranchScore, scored)))),
        share=draw(st.sampled_from(("group", "head", "all"))),
        every=every,
        queries=queries,
        keep=draw(st.sampled_from((None, first(1), back(1), disjunction(first(1), back(2))))),
        keep_extra=draw(st.sampled_from((None, first(2)))),
        among=draw(st.sampled_from((None, *others))),
    )


def wheres(names: tuple[str, ...]) -> st.SearchStrategy[Condition]:
    """Relations that name every one of these choices: joined, intersected or subtracted."""

    def add(where: st.SearchStrategy[Condition], name: str) -> st.SearchStrategy[Condition]:
        how = (conjunction, disjunction, lambda left, right: conjunction(left, Not(right)))
        return st.builds(lambda left, join: join(left, Chosen(name)), where, st.sampled_from(how))

    result: st.SearchStrategy[Condition] = st.sampled_from(tuple(each for each in WHERES if not names or each != relation.FULL))
    for name in names:
        result = add(result, name)
    return result


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    """One to five branches, any of them combined by any output."""
    branches: list[Branch] = []
    made: tuple[str, ...] = ()
    for number in range(draw(st.integers(1, 5))):
        name = f"branch{number}"
        memory: Memory = draw(st.sampled_from((Tokens(), Tokens(), *MEMORIES)))
        scored = tuple(each.name for each in branches if isinstance(each.memory, Compress))
        names = (name, f"{name}_2")[: draw(st.integers(0, 2))] if isinstance(memory, Tokens) else ()
        chosen = tuple(draw(choices(each, scored, made)) for each in names)
        branches.append(branch(name, draw(wheres(names)), memory, chosen, sink=draw(st.booleans())))
        made += names
    kind = draw(st.sampled_from(("gate", "mix", "merge", "single")))
    shuffled = draw(st.permutations([each.name for each in branches]))
    used = tuple(shuffled[: 1 if kind == "single" else draw(st.integers(1, len(shuffled)))])
    return pattern("random", *branches, output=Output(kind, used), kv_per_branch=draw(st.booleans()))
