"""Set-builders: the conditions that relations are made of."""

from __future__ import annotations

from typing import cast

from nsa_dsl.diagnostics import Span
from nsa_dsl.relation import Condition, Symbol, Term, children, conjunction, disjunction, negate
from nsa_dsl.resolve import terms
from nsa_dsl.resolve.integers import all_terms
from nsa_dsl.resolve.kinds import wrong_kind
from nsa_dsl.resolve.problems import Problems
from nsa_dsl.resolve.scope import RESERVED, Context, Scope
from nsa_dsl.syntax import Binary, Comparison, Expression, Logical, Name, Negation, SetBuilder
from nsa_dsl.terms import Comparison as Operator

MAX_NODES = 4096
MAX_CONDITION_DEPTH = 100
NODES_PER_WORK = 20
"""Nodes of a resolved relation that cost as much to walk, hash or evaluate as one expression costs to resolve."""


def check_free(name: Name, scope: Scope, context: Context) -> None:
    """Refuse a new variable's name that already means something. Raises RefusedError."""
    check_reserved(name, context.problems)
    if name.text in scope.values or name.text in scope.variables:
        raise context.problems.refusal("shadowed-name", f"{name.text} already has a meaning here", name.span, "choose another name")


def check_reserved(name: Name, problems: Problems) -> None:
    """Refuse a declared name that the language itself uses. Raises RefusedError."""
    if name.text in RESERVED:
        raise problems.refusal("reserved-name", f"{name.text} belongs to the language", name.span, "choose another name")


def set_builder(node: SetBuilder, scope: Scope, context: Context) -> Condition:
    """The condition over i, j and h that the braces hold. Raises RefusedError."""
    symbols: tuple[Symbol, ...] = ("i", "j", "h")
    if not 2 <= len(node.variables) <= len(symbols):
        raise context.problems.refusal(
            "wrong-arity", "a set-builder has two or three variables: query, key and head", node.span, f"{len(node.variables)} given"
        )
    variables: dict[str, Symbol] = {}
    for name, symbol in zip(node.variables, symbols, strict=False):
        check_free(name, scope, context)
        if name.text in variables:
            raise context.problems.refusal("duplicate-variable", f"{name.text} stands for two things", name.span, "again")
        variables[name.text] = symbol
    inner = Scope(scope.values, variables, scope.bindings)
    return check_size(condition(node.condition, inner, context), node.span, context)


def condition(node: Expression, scope: Scope, context: Context) -> Condition:
    """The condition of a set-builder. Raises RefusedError."""
    with context.deeper(node.span):
        match node:
            case Comparison(operators, operands):
                compared = all_terms(operands, scope, context)
                return terms.compare_all(cast(tuple[Operator, ...], operators), compared)
            case Logical(operator, operands):
                joined: list[Condition] = []
                with context.problems.together():
                    for each in operands:
                        with context.problems.attempt():
                            joined.append(condition(each, scope, context))
                return conjunction(*joined) if operator == "and" else disjunction(*joined)
            case Negation(operand):
                return negate(condition(operand, scope, context))
            case Binary("&" | "|"):
                word = "and" if node.operator == "&" else "or"
                raise context.problems.refusal(
                    "wrong-operator", f"`{node.operator}` joins relations, not conditions", node.span, f"write `{word}`"
                )
            case _:
                raise wrong_kind(node, "a condition", (), scope, context)


def check_size(result: Condition, span: Span, context: Context) -> Condition:
    """Refuse what has grown beyond what later stages can handle. Raises RefusedError."""
    count = size(result)
    context.spend(count // NODES_PER_WORK, span)
    if count > MAX_NODES:
        raise context.problems.refusal(
            "relation-too-large",
            f"a relation may have {MAX_NODES:,} parts and {MAX_CONDITION_DEPTH} levels once its names are resolved",
            span,
            "larger than that",
        )
    return result


def size(condition: Condition) -> int:
    """The number of nodes; MAX_NODES + 1 for more than that or too deep a tree. A loop, so that depth cannot hurt here."""
    pending: list[tuple[Condition | Term, int]] = [(condition, 1)]
    count = 0
    while pending:
        part, depth = pending.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_CONDITION_DEPTH:
            return MAX_NODES + 1
        pending.extend((each, depth + 1) for each in children(part))
    return count
