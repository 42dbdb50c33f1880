"""Building integer terms: constants folded, equal terms gathered, so that `i - w // 2 + 0` stays small.

Every function raises OverflowError when a constant leaves [-(2^31 - 1), 2^31 - 1]: generated kernels hold them in 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from nsa_dsl.relation import (
    FULL,
    Absolute,
    Compare,
    Condition,
    Const,
    Extreme,
    FloorDiv,
    Modulo,
    Scale,
    Sum,
    Term,
    Truth,
    conjunction,
    evaluate,
)
from nsa_dsl.terms import Comparison, scaled, sum_of

GREATEST = 2**31 - 1
"""The greatest magnitude of a constant."""


def constant(value: int) -> Const:
    """The integer as a term."""
    if abs(value) > GREATEST:
        raise OverflowError(value)
    return Const(value)


def add(*parts: Term) -> Term:
    """The sum: coefficients of equal terms gathered in order of first occurrence, the constant last."""
    flat = sum_of(*parts)
    if not isinstance(flat, Sum):
        return _bounded(flat)
    coefficients: dict[Term, int] = {}
    for each in flat.terms:
        factor, term = (each.factor, each.term) if isinstance(each, Scale) else (1, each)
        coefficients[term] = coefficients.get(term, 0) + factor
    gathered = (scaled(factor, term) for term, factor in coefficients.items())
    return _bounded(sum_of(*gathered))


def scale(factor: int, term: Term) -> Term:
    """factor * term, distributed over sums."""
    return _bounded(scaled(factor, term))


def _bounded(term: Term) -> Term:
    """The term, if the constants at its top are small enough; those further down have been checked when they were made."""
    for each in term.terms if isinstance(term, Sum) else (term,):
        if abs(each.value if isinstance(each, Const) else each.factor if isinstance(each, Scale) else 0) > GREATEST:
            raise OverflowError(each)
    return term


def subtract(left: Term, right: Term) -> Term:
    """left - right."""
    return add(left, scale(-1, right))


def floor_divide(term: Term, divisor: int) -> Term:
    """term // divisor, for a divisor of at least 1."""
    if isinstance(term, Const):
        return Const(term.value // divisor)
    return term if divisor == 1 else FloorDiv(term, constant(divisor).value)


def modulo(term: Term, divisor: int) -> Term:
    """term % divisor, for a divisor of at least 1."""
    if isinstance(term, Const):
        return Const(term.value % divisor)
    return Const(0) if divisor == 1 else Modulo(term, constant(divisor).value)


def extreme(kind: Literal["min", "max"], *terms: Term) -> Term:
    """The least or greatest of the terms, flattened, without duplicates, constants folded into one."""
    flat: dict[Term, None] = {}
    for term in terms:
        for inner in term.terms if isinstance(term, Extreme) and term.kind == kind else (term,):
            flat[inner] = None
    numbers = [each.value for each in flat if isinstance(each, Const)]
    kept: list[Term] = [each for each in flat if not isinstance(each, Const)]
    if numbers:
        kept.append(Const(min(numbers) if kind == "min" else max(numbers)))
    return kept[0] if len(kept) == 1 else Extreme(kind, tuple(kept))


def clamp(term: Term, low: Term, high: Term) -> Term:
    """max(low, min(term, high)): `low` wins where the bounds cross."""
    return extreme("max", extreme("min", term, high), low)


def absolute(term: Term) -> Term:
    """abs(term)."""
    return Const(abs(term.value)) if isinstance(term, Const) else Absolute(term)


def compare(op: Comparison, left: Term, right: Term) -> Condition:
    """left <op> right; a comparison that holds everywhere or nowhere becomes a truth."""
    comparison = Compare(op, left, right)
    if isinstance(left, Const) and isinstance(right, Const):
        return Truth(bool(evaluate(comparison, {})))
    return Truth(op in ("<=", ">=", "==")) if left == right else comparison


def compare_all(operators: Iterable[Comparison], terms: tuple[Term, ...]) -> Condition:
    """`a < b <= c` as the conjunction of its links."""
    links = (compare(op, terms[index], terms[index + 1]) for index, op in enumerate(operators))
    return conjunction(FULL, *links)
