"""Terms in their simplest form, the intervals that their values stay in, and negations moved inwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, assert_never

from nsa_dsl.relation import (
    FULL,
    Absolute,
    All,
    Chosen,
    Compare,
    Condition,
    Const,
    Either,
    Extreme,
    FloorDiv,
    Modulo,
    Not,
    SameDocument,
    Scale,
    Sum,
    Term,
    Truth,
    Var,
    conjunction,
    disjunction,
    negate,
)

MOST_TOKENS = 2**26
"""The longest sequence that loops and printed masks are made for."""
MOST_TILES = MOST_TOKENS // 16
"""Of 16 positions, the smallest that a kernel works on."""
MOST_HEADS = 2**12

Comparison: TypeAlias = Literal["<", "<=", ">", ">=", "==", "!="]
Interval: TypeAlias = tuple[int, int]
"""(least, greatest), both reached or not."""

RANGES: Mapping[str, Interval] = {
    "i": (0, MOST_TOKENS),
    "j": (0, MOST_TOKENS),
    "N": (0, MOST_TOKENS),
    "tile": (0, MOST_TILES),
    "h": (0, MOST_HEADS),
    "heads": (1, MOST_HEADS),
    "kv_heads": (1, MOST_HEADS),
}


def sum_of(*terms: Term) -> Term:
    """The sum, flattened, its constants gathered at the end."""
    constant = 0
    flat: list[Term] = []
    for each in terms:
        for inner in each.terms if isinstance(each, Sum) else (each,):
            if isinstance(inner, Const):
                constant += inner.value
            else:
                flat.append(inner)
    if constant or not flat:
        flat.append(Const(constant))
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def scaled(factor: int, term: Term) -> Term:
    """factor * term, with factors multiplied out and sums scaled term by term."""
    match term:
        case Const(value):
            return Const(factor * value)
        case Scale(inner, rest):
            return scaled(factor * inner, rest)
        case Sum(terms):
            return sum_of(*(scaled(factor, each) for each in terms))
        case _:
            return Const(0) if factor == 0 else term if factor == 1 else Scale(factor, term)


def simplified(term: Term) -> Term:
    """The same value with sums and factors flattened at every level and needless wrappers gone."""
    match term:
        case Const() | Var():
            return term
        case Sum(terms):
            return sum_of(*map(simplified, terms))
        case Scale(factor, inner):
            return scaled(factor, simplified(inner))
        case FloorDiv(inner, divisor):
            return simplified(inner) if divisor == 1 else FloorDiv(simplified(inner), divisor)
        case Modulo(inner, divisor):
            return Const(0) if divisor == 1 else Modulo(simplified(inner), divisor)
        case Extreme(kind, terms):
            distinct = tuple(dict.fromkeys(map(simplified, terms)))
            return distinct[0] if len(distinct) == 1 else Extreme(kind, distinct)
        case Absolute(inner):
            return Absolute(simplified(inner))
        case _:
            assert_never(term)


def interval(term: Term, ranges: Mapping[str, Interval]) -> Interval:
    """Bounds on the value, given the symbols' bounds. Raises KeyError for a symbol without."""
    match term:
        case Const(value):
            return value, value
        case Var(name):
            return ranges[name]
        case Sum(terms):
            bounds = [interval(each, ranges) for each in terms]
            return sum(low for low, _ in bounds), sum(high for _, high in bounds)
        case Scale(factor, inner):
            low, high = (factor * bound for bound in interval(inner, ranges))
            return min(low, high), max(low, high)
        case FloorDiv(inner, divisor):
            low, high = interval(inner, ranges)
            return low // divisor, high // divisor
        case Modulo(inner, divisor):
            low, high = interval(inner, ranges)
            return (low, high) if low >= 0 and high < divisor else (0, divisor - 1)
        case Extreme(kind, terms):
            bounds = [interval(each, ranges) for each in terms]
            choose = max if kind == "max" else min
            return choose(low for low, _ in bounds), choose(high for _, high in bounds)
        case Absolute(inner):
            low, high = interval(inner, ranges)
            return max(0, low, -high), max(-low, high)
        case _:
            assert_never(term)


_OPPOSITE: Mapping[str, Comparison] = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}


def push_negation(part: Condition) -> Condition:
    """The complement, with the negation moved one level down; atoms keep theirs. Complements of leaves are cheap for isl."""
    match part:
        case Compare(op, left, right):
            return Compare(_OPPOSITE[op], left, right)
        case All(parts):
            return disjunction(*(push_negation(each) for each in parts))
        case Either(parts):
            return conjunction(*(push_negation(each) for each in parts))
        case Truth() | Not() | SameDocument() | Chosen():
            return negate(part)
        case _:
            assert_never(part)


def tidied(condition: Condition) -> Condition:
    """An equal condition, flattened: negations at atoms only, and no comparison repeated inside a part of an `All`."""
    return _tidied(condition, frozenset())


def _tidied(condition: Condition, known: frozenset[Condition]) -> Condition:
    """What remains to be tested where the known conditions hold."""
    if condition in known:
        return FULL
    match condition:
        case Not(SameDocument() | Chosen()) | Truth() | Compare() | SameDocument() | Chosen():
            return condition
        case Not(part):
            return _tidied(push_negation(part), known)
        case All():
            flat = conjunction(*(_tidied(each, known) for each in condition.parts))
            if not isinstance(flat, All):
                return flat
            facts = frozenset(each for each in flat.parts if not isinstance(each, Either))
            return conjunction(*(_tidied(each, known | facts) if isinstance(each, Either) else each for each in flat.parts))
        case Either(parts):
            return disjunction(*(_tidied(each, known) for each in parts))
        case _:
            assert_never(condition)


def split_atoms(condition: Condition) -> tuple[Condition, tuple[Condition, ...]]:
    """The condition as `rest & atom & atom ...`: SameDocument and choices that it intersects with, apart."""
    tidy = tidied(condition)
    parts = tidy.parts if isinstance(tidy, All) else (tidy,)
    atoms = tuple(each for each in parts if isinstance(each, SameDocument | Chosen))
    return conjunction(*(each for each in parts if each not in atoms)), atoms
