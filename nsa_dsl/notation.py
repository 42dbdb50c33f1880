"""Conditions and terms in the language's own notation, with as few parentheses as its precedence allows."""

from __future__ import annotations

from typing import assert_never

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

# Binding strength: a part is put in parentheses when it binds less tightly than its place asks for.
_OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _ATOM = range(7)


def format_condition(condition: Condition) -> str:
    """The condition as one would write it: `i - 512 < j and j <= i`. A choice reads as its name, `document` as itself."""
    return _condition(condition)[0]


def format_term(term: Term) -> str:
    """The term as one would write it: `16 * j + 31`."""
    return _term(term)[0]


def _condition(node: Condition) -> tuple[str, int]:
    match node:
        case Truth(value):
            return ("full" if value else "empty"), _ATOM
        case Compare(op, left, right):
            return f"{format_term(left)} {op} {format_term(right)}", _COMPARE
        case Not(part):
            return f"not {_within(_condition(part), _NOT)}", _NOT
        case All(parts):
            return " and ".join(_within(_condition(each), _NOT) for each in parts), _AND
        case Either(parts):
            return " or ".join(_within(_condition(each), _AND) for each in parts), _OR
        case SameDocument():
            return "document", _ATOM
        case Chosen(choice):
            return choice, _ATOM
        case _:
            assert_never(node)


def _term(node: Term) -> tuple[str, int]:
    match node:
        case Const(value):
            return str(value), _ATOM if value >= 0 else _SUM
        case Var(name):
            return name, _ATOM
        case Sum(terms):
            first, *rest = terms
            return _within(_term(first), _SUM) + "".join(_added(each) for each in rest), _SUM
        case Scale(factor, term):
            if factor == -1:
                return f"-{_within(_term(term), _ATOM)}", _SUM
            return _factored(factor, term), _SUM if factor < 0 else _PRODUCT
        case FloorDiv(term, divisor):
            return f"{_within(_term(term), _PRODUCT)} // {divisor}", _PRODUCT
        case Modulo(term, divisor):
            return f"{_within(_term(term), _PRODUCT)} % {divisor}", _PRODUCT
        case Extreme(_, (only,)):
            return _term(only)
        case Extreme(kind, terms):
            return f"{kind}({', '.join(format_term(each) for each in terms)})", _ATOM
        case Absolute(term):
            return f"abs({format_term(term)})", _ATOM
        case _:
            assert_never(node)


def _added(term: Term) -> str:
    """A further term of a sum, with its sign."""
    match term:
        case Const(value) if value < 0:
            return f" - {-value}"
        case Scale(factor, inner) if factor < 0:
            return f" - {_factored(-factor, inner)}"
        case _:
            return f" + {_within(_term(term), _PRODUCT)}"


def _factored(factor: int, term: Term) -> str:
    """factor * term. Products associate to the left, so the term must be an atom, unless there is no factor to write."""
    return _within(_term(term), _PRODUCT) if factor == 1 else f"{factor} * {_within(_term(term), _ATOM)}"


def _within(text: tuple[str, int], strength: int) -> str:
    return text[0] if text[1] >= strength else f"({text[0]})"
