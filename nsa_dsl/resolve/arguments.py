"""Matching a call's arguments to parameters, and giving parameters their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isinf
from typing import TypeVar

from nsa_dsl.diagnostics import Label, Span
from nsa_dsl.resolve.integers import constant, wrong_arity
from nsa_dsl.resolve.kinds import kind_of, suggestions, unknown_name, wrong_kind
from nsa_dsl.resolve.problems import RefusedError
from nsa_dsl.resolve.scope import MEMBERS, UNKNOWN, Context, Named, Scope, Unknown, Value, kind_of_declaration
from nsa_dsl.syntax import Argument, Call, Expression, Name, Negative, Parameter, Real, RelationDeclaration

Member = TypeVar("Member", bound=str)


def match_arguments(call: Call, names: Sequence[str], context: Context, positional: int | None = None) -> dict[str, Argument]:
    """Which argument each parameter gets; missing ones are left out. positional: how many may come without a name
    (default: all). Raises RefusedError after reporting every misfit."""
    problems = context.problems
    most = len(names) if positional is None else positional
    unnamed = [each for each in call.arguments if each.name is None]
    if len(unnamed) > most:
        wanted = f"at most {most}" if positional is None else f"at most {most} unnamed"
        raise wrong_arity(call.name, wanted, len(unnamed), unnamed[most].span, context)
    matched = dict(zip(names, unnamed, strict=False))
    sound = True
    for each in call.arguments:
        if each.name is None:
            continue
        sound = sound and each.name in names and each.name not in matched
        if each.name not in names:
            helps = suggestions(each.name, names) or (f"{call.name} takes {', '.join(names) or 'no arguments'}",)
            problems.report("unknown-argument", f"{call.name} has no argument named {each.name}", each.span, "not known", help=helps)
        elif each.name in matched:
            first = Label(matched[each.name].span, "first given here")
            problems.report("duplicate-argument", f"{each.name} is given twice", each.span, "again", context=(first,))
        else:
            matched[each.name] = each
    if not sound:
        raise RefusedError
    return matched


def bind(declaration: Named, call: Name | Call, scope: Scope, context: Context) -> dict[str, Value]:
    """The parameters' values for one call of a declaration. Raises RefusedError after reporting every misfit."""
    given: dict[str, Value] = {}
    names = [each.name.text for each in declaration.parameters]
    matched = match_arguments(call, names, context) if isinstance(call, Call) else {}
    defaults = {each.name.text: each.default for each in declaration.parameters}
    missing = [name for name in names if name not in matched and defaults[name] is None]
    if missing:
        raise context.problems.refusal(
            "missing-argument",
            f"{declaration.name.text} needs {' and '.join(missing)}",
            call.span,
            f"no {missing[0]} given",
            context=(Label(declaration.name.span, "declared here"),),
        )
    with context.problems.together():
        for name, argument in matched.items():
            with context.problems.attempt():
                given[name] = argument_value(argument.value, scope, context)
                check_fits(given[name], name, defaults[name], argument.value.span, context)
                if isinstance(declaration, RelationDeclaration) and isinstance(given[name], float | str):
                    found = _value_kind(given[name])
                    raise context.problems.refusal(
                        "wrong-kind", f"a relation takes integers, found {found}", argument.value.span, f"this is {found}"
                    )
    return complete(declaration, given, context)


def check_fits(value: Value, name: str, default: Expression | None, span: Span, context: Context) -> None:
    """Refuse a value that is not of the kind that the parameter's default shows. Raises RefusedError."""
    wanted = _shown_kind(default)
    found = _value_kind(value)
    if wanted is None or found is None or wanted == found or (wanted == "a real number" and found == "an integer"):
        return
    raise context.problems.refusal("wrong-kind", f"{name} is {wanted}, found {found}", span, f"this is {found}")


def _shown_kind(default: Expression | None) -> str | None:
    match default:
        case None:
            return None
        case Real() | Negative(Real()):
            return "a real number"
        case Name(text) if text in MEMBERS:
            return "an option"
        case Name():
            return None
        case _:
            return "an integer"


def _value_kind(value: Value) -> str | None:
    match value:
        case Unknown():
            return None
        case int():
            return "an integer"
        case float():
            return "a real number"
        case str():
            return "an option"


def complete(declaration: Named, given: Mapping[str, Value], context: Context) -> dict[str, Value]:
    """Every parameter's value in the order declared: the given one, else its default, which may use earlier parameters;
    a stand-in where there is neither. Raises RefusedError."""
    values: dict[str, Value] = {}
    for parameter in declaration.parameters:
        name = parameter.name.text
        if name in given:
            values[name] = given[name]
        elif parameter.default is None:
            values[name] = UNKNOWN
        else:
            values[name] = argument_value(parameter.default, Scope(values), context)
    return values


def argument_value(node: Expression, scope: Scope, context: Context) -> Value:
    """An argument or default: an option's name, a real number, or a constant integer expression. Raises RefusedError."""
    match node:
        case Name(text) if text in scope.values:
            return scope.values[text]
        case Name(text) if text in MEMBERS:
            return text
        case Real() | Negative(Real()):
            return real(node, scope, context)
        case Name(text) if kind_of(node, scope, context) is None:
            raise unknown_name(text, node.span, "a number or an option", [*scope.values, *MEMBERS], context)
        case _:
            return constant(node, scope, context)


def real(node: Expression, scope: Scope, context: Context) -> float:
    """A real number, written, given by a parameter, or an integer. Raises RefusedError."""
    match node:
        case Real(text):
            number = float(text.replace("_", ""))
            if isinf(number):
                raise context.problems.refusal("number-too-large", "a real number leaves 64 bits", node.span, "more than 1.8e308")
            return number
        case Negative(Real() as operand):
            return -real(operand, scope, context)
        case Name(text) if isinstance(value := scope.values.get(text), float):
            return value
        case _:
            return float(constant(node, scope, context, "a number"))


def option(node: Expression, members: Sequence[Member], scope: Scope, context: Context) -> Member:
    """One of the members, written or given by a parameter. Raises RefusedError."""
    wanted = f"one of {', '.join(members)}"
    if not isinstance(node, Name):
        raise wrong_kind(node, wanted, (), scope, context)
    value = scope.values.get(node.text, node.text)
    if isinstance(value, Unknown):
        return members[0]
    for each in members:
        if each == value:
            return each
    if node.text in scope.values or node.text in MEMBERS:
        raise context.problems.refusal("not-an-option", f"{value} is not an option here", node.span, f"expected {wanted}")
    raise wrong_kind(node, wanted, members, scope, context)


def check_parameters(declaration: Named, context: Context) -> None:
    """Report parameters declared twice. (Reserved names are refused with all other names.)"""
    seen: dict[str, Parameter] = {}
    for each in declaration.parameters:
        first = seen.setdefault(each.name.text, each)
        if first is not each:
            what = f"{kind_of_declaration(declaration)} {declaration.name.text}"
            context.problems.report(
                "duplicate-parameter",
                f"{what} has two parameters named {each.name.text}",
                each.name.span,
                "again",
                context=(Label(first.name.span, "first here"),),
            )
