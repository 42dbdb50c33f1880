"""What a choice can take and what it always takes, and what that makes of a branch's `where`: static bounds of a decision
that is made by data.

In block relations here i is a query token, j a key block and N the length in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from nsa_dsl.pattern import Choice, GivenIndices, PooledScore
from nsa_dsl.relation import (
    EMPTY,
    FULL,
    All,
    Chosen,
    Compare,
    Condition,
    Const,
    Either,
    Extreme,
    FloorDiv,
    Not,
    Scale,
    Sum,
    Term,
    Var,
    conjunction,
    disjunction,
    negate,
    rewrite,
)


def candidate_blocks(choice: Choice, choices: Mapping[str, Choice]) -> Condition:
    """The most that the choice can take: blocks that begin at or before the choosing query (a block scored through pooled
    keys: that end there) and lie inside what `among` can take, and the kept blocks; every block when the caller passes the
    choice. choices: by name, for `among`.
    """
    if isinstance(choice.score, GivenIndices):
        return FULL
    chooser = _choosing_query(choice)
    last_needed = choice.block - 1 if isinstance(choice.score, PooledScore) else 0
    scored: Condition = Compare("<=", _plus(_times(choice.block, Var("j")), last_needed), chooser)
    if choice.among is not None:
        outer = choices[choice.among]
        within = candidate_blocks(outer, choices)
        start = _times(choice.block, Var("j"))
        end = Extreme("min", (_plus(start, choice.block - 1), _plus(Var("N"), -1)))
        for token in (start,) if outer.block % choice.block == 0 else (start, end):
            scored = conjunction(scored, rewrite(within, {"i": chooser, "j": _over(token, outer.block)}))
    if scored == _begun(choice):
        return scored  # the kept blocks have begun too
    return disjunction(scored, kept_blocks(choice))


def kept_blocks(choice: Choice) -> Condition:
    """What the choice always takes: `keep` and `keep_extra`, as far as they begin at or before the choosing query; nothing when
    the caller passes the choice. Holds while `keep` does not exceed `count`: of more blocks, the first `count` are taken."""
    if isinstance(choice.score, GivenIndices):
        return EMPTY
    chooser = _choosing_query(choice)
    in_blocks = {"i": _over(chooser, choice.block), "N": _over(_plus(Var("N"), choice.block - 1), choice.block)}
    kept = disjunction(*(rewrite(each, in_blocks) for each in (choice.keep, choice.keep_extra) if each is not None))
    return conjunction(kept, _begun(choice))


def tokens_of(blocks: Condition, block: int) -> Condition:
    """A block relation as token pairs: key j lies in a related block."""
    return rewrite(blocks, {"j": _over(Var("j"), block)})


def bounded(where: Condition, choices: Mapping[str, Choice], *, must: bool) -> Condition:
    """The token pairs that `where` allows whatever is chosen, kept blocks included (must), or for some choice.

    choices: every choice of the pattern, by name."""
    may = {name: tokens_of(candidate_blocks(each, choices), each.block) for name, each in choices.items()}
    if not must:
        return may_choose(where, may)
    kept: dict[Condition, Condition] = {
        Chosen(name): disjunction(Chosen(name), tokens_of(kept_blocks(each), each.block)) for name, each in choices.items()
    }
    return choose_static(rewrite(where, {}, kept), may)


def choose_static(where: Condition, may: Mapping[str, Condition]) -> Condition:
    """The pairs `where` allows whatever is chosen. may: choice -> the token pairs it can take."""
    return _bound(where, dict.fromkeys(may, EMPTY), may)


def may_choose(where: Condition, may: Mapping[str, Condition]) -> Condition:
    """The pairs `where` allows for some choice. may: choice -> the token pairs it can take."""
    return _bound(where, may, dict.fromkeys(may, EMPTY))


def _bound(where: Condition, plain: Mapping[str, Condition], negated: Mapping[str, Condition]) -> Condition:
    """`where` with its choices replaced; under a negation a choice acts the other way round, so the replacements swap."""
    match where:
        case Chosen(choice):
            return plain[choice]
        case Not(part):
            return negate(_bound(part, negated, plain))
        case All(parts):
            return conjunction(*(_bound(each, plain, negated) for each in parts))
        case Either(parts):
            return disjunction(*(_bound(each, plain, negated) for each in parts))
        case _:
            return where


def _begun(choice: Choice) -> Condition:
    """The block begins at or before the choosing query."""
    return Compare("<=", _times(choice.block, Var("j")), _choosing_query(choice))


def _choosing_query(choice: Choice) -> Term:
    """The query whose position bounds the candidates: the first of a run; of a tile the last, since all of it chooses."""
    if choice.queries > 1:
        last = _plus(_times(choice.queries, _over(Var("i"), choice.queries)), choice.queries - 1)
        return Extreme("min", (last, _plus(Var("N"), -1)))
    return _times(choice.every, _over(Var("i"), choice.every))


def _times(factor: int, term: Term) -> Term:
    return term if factor == 1 else Scale(factor, term)


def _over(term: Term, divisor: int) -> Term:
    return term if divisor == 1 else FloorDiv(term, divisor)


def _plus(term: Term, constant: int) -> Term:
    return term if constant == 0 else Sum((term, Const(constant)))
