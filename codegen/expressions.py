"""Terms and conditions printed as Triton source, and as Python for integers and tensors alike.

Compiled Triton divides as C does and the interpreter as Python does, so only non-negative operands of `//` and `%` are
printed: where the intervals allow a negative one, a multiple of the divisor is added first. Where 32 bits could overflow,
the symbols are cast to 64.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeAlias, assert_never

from nsa_dsl.relation import (
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
)
from nsa_dsl.terms import RANGES, Interval, interval, scaled, simplified, sum_of, tidied

LARGEST_INT32 = 2**31 - 1

_Text: TypeAlias = tuple[str, int]
"""Source and how tightly its outermost operator binds."""
_SUM, _PRODUCT, _ATOM = range(3)


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How a language spells what terms and conditions say. negated: around an atom."""

    both: str
    either: str
    negated: str
    smaller: str
    greater: str
    absolute: str


_TRITON = _Dialect(" & ", " | ", "({} == 0)", "tl.minimum", "tl.maximum", "tl.abs")
_ELEMENTWISE = _Dialect(" & ", " | ", "({} ^ True)", "smaller", "greater", "abs")


def print_term(term: Term, names: Mapping[str, str], ranges: Mapping[str, Interval] | None = None) -> str:
    """The term as a Triton expression on blocks, scalars or both.

    names: symbol -> source. ranges: symbol -> (least, greatest) where it differs from `terms.RANGES`.
    Raises KeyError for a symbol without a name, and OverflowError where 64 bits could overflow.
    """
    return _Printer(_TRITON, names, {**RANGES, **(ranges or {})}).whole(term)


def print_condition(condition: Condition, names: Mapping[str, str], ranges: Mapping[str, Interval] | None = None) -> str:
    """The condition as a Triton expression on Boolean blocks and scalars; see print_term.

    names: also "same_document" and "chosen:NAME". `full` and `empty` print as the scalars True and False.
    """
    return _Printer(_TRITON, names, {**RANGES, **(ranges or {})}).condition(condition)


def print_elementwise(condition: Condition, names: Mapping[str, str]) -> str:
    """The condition as a Python expression on integers of any size and sign, or on tensors of them; `smaller` and `greater`, of two of
    either, are the caller's. names: as print_condition."""
    return _Printer(_ELEMENTWISE, names, None).condition(condition)


@dataclass(frozen=True, slots=True)
class _Printer:
    """ranges: None where division rounds down and integers do not overflow. wide: symbols are cast to 64 bits."""

    dialect: _Dialect
    names: Mapping[str, str]
    ranges: Mapping[str, Interval] | None
    wide: bool = False

    def condition(self, condition: Condition) -> str:
        return self._condition(tidied(condition))

    def _condition(self, condition: Condition) -> str:
        match condition:
            case Truth(value):
                return str(value)
            case Compare(op, left, right):
                return f"{self.whole(left)} {op} {self.whole(right)}"
            case All(parts):
                return self.dialect.both.join(map(self._part, parts))
            case Either(parts):
                return self.dialect.either.join(map(self._part, parts))
            case Not(part):
                return self.dialect.negated.format(self._part(part))
            case SameDocument():
                return _atom(self.names["same_document"])
            case Chosen(choice):
                return _atom(self.names[f"chosen:{choice}"])
            case _:
                assert_never(condition)

    def _part(self, part: Condition) -> str:
        """One side of `&` or `|`, which bind tighter than comparisons."""
        text = self._condition(part)
        return f"({text})" if isinstance(part, Compare | All | Either) else text

    def whole(self, term: Term) -> str:
        """A term that stands alone: the unit in which 32 or 64 bits are chosen."""
        term = simplified(term)
        if self.ranges is not None:
            widest = _widest(term, self.ranges)
            if widest > 2**63 - 1:
                raise OverflowError(f"values up to {widest} do not fit 64 bits")
            return replace(self, wide=widest > LARGEST_INT32)._term(term)[0]
        return self._term(term)[0]

    def _term(self, term: Term) -> _Text:
        match term:
            case Const(value):
                return str(value), _ATOM if value >= 0 else _PRODUCT
            case Var(name):
                source = self.names[name]
                return (f"tl.cast({source}, tl.int64)" if self.wide else _atom(source)), _ATOM
            case Sum(terms):
                return self._sum(terms), _SUM
            case Scale(factor, inner):
                text = self._at_least(_ATOM, inner)
                return (f"-{text}" if factor == -1 else f"{factor} * {text}"), _PRODUCT
            case FloorDiv(inner, divisor):
                shift = self._shift(inner, divisor)
                quotient = f"{self._at_least(_PRODUCT, sum_of(inner, Const(shift)))} // {divisor}"
                return (f"{quotient} - {shift // divisor}", _SUM) if shift else (quotient, _PRODUCT)
            case Modulo(inner, divisor):
                return f"{self._at_least(_PRODUCT, sum_of(inner, Const(self._shift(inner, divisor))))} % {divisor}", _PRODUCT
            case Extreme(kind, terms):
                return self._extreme(self.dialect.greater if kind == "max" else self.dialect.smaller, terms), _ATOM
            case Absolute(inner):
                return f"{self.dialect.absolute}({self._term(inner)[0]})", _ATOM
            case _:
                assert_never(term)

    def _at_least(self, level: int, term: Term) -> str:
        text, binds = self._term(term)
        return text if binds >= level else f"({text})"

    def _sum(self, terms: tuple[Term, ...]) -> str:
        """Beginning with a positive term where there is one, so that `3 - x` needs no sign in front."""
        first = next((index for index, each in enumerate(terms) if not _is_negative(each)), 0)
        text = self._term(terms[first])[0]
        for each in terms[:first] + terms[first + 1 :]:
            sign, size = ("-", scaled(-1, each)) if _is_negative(each) else ("+", each)
            text += f" {sign} {self._at_least(_PRODUCT if sign == '-' else _SUM, size)}"
        return text

    def _extreme(self, function: str, terms: tuple[Term, ...]) -> str:
        text = self._term(terms[0])[0]
        for each in terms[1:]:
            text = f"{function}({text}, {self._term(each)[0]})"
        return text

    def _shift(self, term: Term, divisor: int) -> int:
        """The least multiple of the divisor that makes the term non-negative."""
        return 0 if self.ranges is None else _shift(term, divisor, self.ranges)


def _shift(term: Term, divisor: int, ranges: Mapping[str, Interval]) -> int:
    return max(0, -(interval(term, ranges)[0] // divisor) * divisor)


def _widest(term: Term, ranges: Mapping[str, Interval]) -> int:
    """A bound on every intermediate value, in whatever order a sum is added up."""
    own = max(map(abs, interval(term, ranges)))
    match term:
        case Sum(terms):
            return max(own, sum(_widest(each, ranges) for each in terms))
        case FloorDiv(inner, divisor) | Modulo(inner, divisor):
            return max(divisor, _widest(inner, ranges) + 2 * _shift(inner, divisor, ranges))
        case Extreme(_, terms):
            return max(_widest(each, ranges) for each in terms)
        case Scale(_, inner) | Absolute(inner):
            return max(own, _widest(inner, ranges))
        case Const() | Var():
            return own
        case _:
            assert_never(term)


def _is_negative(term: Term) -> bool:
    """Whether the term is printed with a sign in front."""
    return (isinstance(term, Const) and term.value < 0) or (isinstance(term, Scale) and term.factor < 0)


@cache
def _atom(source: str) -> str:
    """The source, in parentheses unless it already stands by itself."""
    tree = ast.parse(source, mode="eval").body
    closed = isinstance(tree, ast.Name | ast.Attribute | ast.Subscript | ast.Call | ast.Constant) or tree.col_offset > 0
    return source if closed else f"({source})"
