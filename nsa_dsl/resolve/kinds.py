"""Naming what an expression is, for errors that say what was wanted and what was found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from nsa_dsl.diagnostics import Span, did_you_mean
from nsa_dsl.resolve.problems import RefusedError
from nsa_dsl.resolve.scope import FUNCTIONS, MEMBERS, SYMBOLS, Context, Scope, Unknown
from nsa_dsl.syntax import (
    Binary,
    Call,
    Comparison,
    Expression,
    Integer,
    Logical,
    Name,
    Negation,
    Negative,
    Real,
    SetBuilder,
    UnionOver,
)


def kind_of(node: Expression, scope: Scope, context: Context) -> str | None:
    """What the expression makes (`a relation`, `an integer`, ...), or None when it names nothing known."""
    match node:
        case Name(text):
            return _kind_of_name(text, scope, context)
        case Call(name):
            return FUNCTIONS.get(name) or _kind_of_declared(name, context)
        case Integer() | Negative():
            return "an integer"
        case Real():
            return "a real number"
        case Comparison() | Logical() | Negation():
            return "a condition"
        case SetBuilder() | UnionOver():
            return "a relation"
        case Binary("|" | "&"):
            return "a relation"
        case Binary("-", left, _):
            while isinstance(left, Binary) and left.operator == "-":
                left = left.left
            return "a relation" if not isinstance(left, Binary) and kind_of(left, scope, context) == "a relation" else "an integer"
        case Binary():
            return "an integer"
        case _:
            assert_never(node)


def _kind_of_name(text: str, scope: Scope, context: Context) -> str | None:
    if text in scope.values:
        match scope.values[text]:
            case int() | Unknown():
                return "an integer"
            case float():
                return "a real number"
            case str():
                return "an option"
    if text in scope.variables or text in SYMBOLS:
        return "an integer that only the run knows"
    if text == "tokens":
        return "a memory"
    if text == "document":
        return "a relation"
    return scope.bindings.get(text) or _kind_of_declared(text, context) or ("an option" if text in MEMBERS else FUNCTIONS.get(text))


def _kind_of_declared(name: str, context: Context) -> str | None:
    if name in context.relations:
        return "a relation"
    if name in context.patterns:
        return "a pattern"
    return "a model" if name in context.models else None


def wrong_kind(node: Expression, wanted: str, candidates: Iterable[str], scope: Scope, context: Context) -> RefusedError:
    """The refusal of an expression that is not `wanted`; a name that means nothing is reported as such, with the nearest candidate."""
    found = kind_of(node, scope, context)
    if found is None and isinstance(node, Name | Call):
        name = node.text if isinstance(node, Name) else node.name
        return unknown_name(name, name_span(node), wanted, candidates, context)
    title = f"expected {wanted}, found {found}"
    helps = ("a condition becomes a relation in braces: { i, j : ... }",) if (found, wanted) == ("a condition", "a relation") else ()
    return context.problems.refusal("wrong-kind", title, node.span, f"this is {found}", help=helps)


def unknown_name(name: str, span: Span, wanted: str, candidates: Iterable[str], context: Context) -> RefusedError:
    """The refusal of a name that means nothing here."""
    return context.problems.refusal("unknown-name", f"no such name: {name}", span, f"expected {wanted}", help=suggestions(name, candidates))


def suggestions(name: str, candidates: Iterable[str]) -> tuple[str, ...]:
    """A did-you-mean line, or none when nothing comes near."""
    nearest = did_you_mean(name, candidates)
    return (f"did you mean {nearest}?",) if nearest else ()


def name_span(node: Name | Call) -> Span:
    """Where the name itself stands: a call's span starts with it."""
    if isinstance(node, Name):
        return node.span
    span = node.span
    return Span(span.source, span.start, span.start + len(node.name), span.line, span.column)
