"""Relations: set-builders, their algebra, and calls of declared ones, as one condition over i, j and h."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from nsa_dsl.diagnostics import Label, Span
from nsa_dsl.relation import EMPTY, Condition, SameDocument, conjunction, disjunction, negate, walk
from nsa_dsl.resolve.arguments import bind
from nsa_dsl.resolve.conditions import NODES_PER_WORK, check_free, check_size, set_builder, size
from nsa_dsl.resolve.integers import chain, constant
from nsa_dsl.resolve.kinds import name_span, wrong_kind
from nsa_dsl.resolve.prelude_limits import check_prelude_arguments
from nsa_dsl.resolve.problems import RefusedError
from nsa_dsl.resolve.scope import Context, KnownRelation, Scope, Value
from nsa_dsl.syntax import Binary, Call, Expression, Name, RelationDeclaration, SetBuilder, UnionOver

Chooser: TypeAlias = Callable[[Call], Condition]
"""What a place does with `top(...)`, `over(...)` and `mass(...)`."""

CHOICE_RULES = ("top", "over", "mass")

MAX_UNION = 1024


def relation(node: Expression, scope: Scope, context: Context, chooser: Chooser | None = None) -> Condition:
    """The expression as a condition; `chooser` makes a choice's atom where choices may stand. Raises RefusedError."""
    with context.deeper(node.span):
        match node:
            case SetBuilder():
                return set_builder(node, scope, context)
            case UnionOver():
                return check_size(_union_over(node, scope, context, chooser), node.span, context)
            case Binary("&"):
                return check_size(_intersection(node, scope, context, chooser), node.span, context)
            case Binary("|" | "-"):
                return check_size(_union_and_difference(node, scope, context, chooser), node.span, context)
            case Binary("+"):
                raise context.problems.refusal(
                    "wrong-operator",
                    "relations are not added",
                    node.span,
                    "both sides together are A | B",
                )
            case Name("document"):
                return SameDocument()
            case Call(name) if name in CHOICE_RULES:
                if chooser is None:
                    raise context.problems.refusal(
                        "choice-not-allowed",
                        "a choice depends on the data, so it may stand only in an attend's `where`",
                        node.span,
                        "a static relation is expected here",
                    )
                return chooser(node)
            case Name(name) | Call(name) if name in context.relations:
                return declared(context.relations[name], node, scope, context)
            case _:
                raise wrong_kind(node, "a relation", [*context.relations, "document", *CHOICE_RULES], scope, context)


def _intersection(node: Binary, scope: Scope, context: Context, chooser: Chooser | None) -> Condition:
    parts: list[Condition] = []
    with context.problems.together():
        for _, each in chain(node, ("&",)):
            with context.problems.attempt():
                parts.append(relation(each, scope, context, chooser))
    return conjunction(*parts)


def _union_and_difference(node: Binary, scope: Scope, context: Context, chooser: Chooser | None) -> Condition:
    united: Condition = EMPTY
    pending: list[Condition] = []
    with context.problems.together():
        for operator, each in chain(node, ("|", "-")):
            with context.problems.attempt():
                part = relation(each, scope, context, chooser)
                _check_no_document(part, each.span, context)
                if operator == "|":
                    pending.append(part)
                else:
                    united = conjunction(disjunction(united, *pending), negate(part))
                    pending.clear()
    return disjunction(united, *pending)


def _check_no_document(part: Condition, span: Span, context: Context) -> None:
    if any(isinstance(each, SameDocument) for each in walk(part)):
        raise context.problems.refusal(
            "document-opaque",
            "`document` can only be joined by &: what it allows is known only when a call packs documents",
            span,
            "holds `document`",
            help=("write (the rest) & document",),
        )


def static(node: Expression, scope: Scope, context: Context, place: str) -> Condition:
    """A relation that must be known when the spec is compiled: no choice and no `document`. Raises RefusedError."""
    result = relation(node, scope, context)
    if any(isinstance(each, SameDocument) for each in walk(result)):
        raise context.problems.refusal(
            "document-opaque", f"`document` says nothing in {place}: only a call knows it", node.span, "holds `document`"
        )
    return result


def _union_over(node: UnionOver, scope: Scope, context: Context, chooser: Chooser | None) -> Condition:
    check_free(node.variable, scope, context)
    low = constant(node.low, scope, context)
    high = constant(node.high, scope, context)
    if high < low:
        raise context.problems.refusal("bad-range", "a range must not end before it begins", node.high.span, f"{low}..{high}")
    if high - low > MAX_UNION:
        raise context.problems.refusal(
            "union-too-long", f"a union has at most {MAX_UNION:,} members", node.high.span, f"{high - low:,} members"
        )
    united: list[Condition] = []
    for value in range(low, high):
        part = relation(node.body, scope.with_value(node.variable.text, value), context, chooser)
        _check_no_document(part, node.body.span, context)
        united.append(part)
    return disjunction(EMPTY, *united)


def declared(declaration: RelationDeclaration, node: Name | Call, scope: Scope, context: Context) -> Condition:
    """What a reference to a declared relation means, with its arguments. Raises RefusedError."""
    values = bind(declaration, node, scope, context)
    check_prelude_arguments(declaration, values, node.span, context)
    with context.problems.called_at(node.span, called_with(values)):
        return body(declaration, values, name_span(node), context)


def called_with(values: Mapping[str, Value]) -> str:
    """How a diagnostic inside a declaration refers to the call that gave these values."""
    shown = ", ".join(f"{name} = {value}" for name, value in values.items())
    return f"called here with {shown}" if shown else "called here"


def body(declaration: RelationDeclaration, values: Mapping[str, Value], span: Span, context: Context) -> Condition:
    """The declaration's body under these values; equal calls are resolved once. Raises RefusedError."""
    name = declaration.name.text
    cycle = [each for each, _ in context.open_relations]
    if name in cycle:
        loop = [*context.open_relations[cycle.index(name) :], (name, span)]
        raise context.problems.refusal(
            "relation-cycle",
            f"relations define each other in a circle: {' -> '.join(each for each, _ in loop)}",
            span,
            "comes back here",
            context=tuple(Label(place, f"{each} is used here") for each, place in loop[1:-1]),
        )
    key = (name, tuple(values.items()), context.problems.sketching)
    if key not in context.known:
        context.known[key] = None
        context.open_relations.append((name, span))
        try:
            made = relation(declaration.body, Scope(values), context)
            context.known[key] = KnownRelation(made, size(made))
        finally:
            context.open_relations.pop()
    known = context.known[key]
    if known is None:
        raise RefusedError
    context.spend(known.nodes // NODES_PER_WORK, span)
    return known.condition
