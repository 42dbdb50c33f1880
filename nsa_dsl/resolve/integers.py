"""Integer expressions: terms of a set-builder, and the constants that everything else counts with."""

from __future__ import annotations

from collections.abc import Iterable

from nsa_dsl.diagnostics import Span
from nsa_dsl.printer import print_expression
from nsa_dsl.relation import Const, Term, Var, symbols
from nsa_dsl.resolve import terms
from nsa_dsl.resolve.kinds import wrong_kind
from nsa_dsl.resolve.problems import RefusedError
from nsa_dsl.resolve.scope import SYMBOLS, Context, Scope, Unknown
from nsa_dsl.syntax import Argument, Binary, Call, Expression, Integer, Name, Negative

MAX_LAYERS = 4096

_MAX_EXPONENT = 31
_ARITY = {"min": (2, None), "max": (2, None), "abs": (1, 1), "clamp": (3, 3)}


def constant(node: Expression, scope: Scope, context: Context, what: str = "a constant integer") -> int:
    """The expression's value, which must be known now. Raises RefusedError."""
    value = term(node, scope, context, what)
    if isinstance(value, Const):
        return value.value
    names = ", ".join(sorted(symbols(value)))
    raise context.problems.refusal(
        "not-constant", f"expected {what}, found a term that only the run knows", node.span, f"depends on {names}"
    )


def at_least(low: int, node: Expression, scope: Scope, context: Context, what: str) -> int:
    """A constant of at least `low`. Raises RefusedError."""
    value = constant(node, scope, context)
    if value < low:
        raise context.problems.refusal("too-small", f"{what} must be at least {low}", node.span, f"this is {value}")
    return value


def layer_count(node: Expression, scope: Scope, context: Context) -> int:
    """A number of layers that a model can have. Raises RefusedError."""
    count = constant(node, scope, context)
    if not 1 <= count <= MAX_LAYERS:
        raise context.problems.refusal("bad-layer-count", f"a model has 1 to {MAX_LAYERS:,} layers", node.span, f"this is {count:,}")
    return count


def term(node: Expression, scope: Scope, context: Context, wanted: str = "an integer") -> Term:
    """The expression as a quasi-affine term. Raises RefusedError."""
    with context.deeper(node.span):
        try:
            return _term(node, scope, context, wanted)
        except OverflowError:
            raise context.problems.refusal(
                "number-too-large",
                "a constant leaves 32 bits",
                node.span,
                "more than 2,147,483,647 in magnitude",
            ) from None


def _term(node: Expression, scope: Scope, context: Context, wanted: str) -> Term:
    match node:
        case Integer(value):
            return terms.constant(value)
        case Negative(operand):
            return terms.scale(-1, term(operand, scope, context, wanted))
        case Name(text):
            return _named(node, text, scope, context, wanted)
        case Binary("+" | "-"):
            return _sum(node, scope, context, wanted)
        case Binary("*" | "//" | "%" | "**", left, right):
            first, second = all_terms((left, right), scope, context)
            return _product(node, first, second, context)
        case Binary():
            raise wrong_kind(node, wanted, (), scope, context)
        case Call(name, arguments) if name in _ARITY:
            return _function(node, name, arguments, scope, context)
        case _:
            raise wrong_kind(node, wanted, _ARITY, scope, context)


def all_terms(nodes: Iterable[Expression], scope: Scope, context: Context, wanted: str = "an integer") -> tuple[Term, ...]:
    """Every expression as a term; one that is refused does not keep the others from being checked. Raises RefusedError."""
    parts: list[Term] = []
    with context.problems.together():
        for each in nodes:
            with context.problems.attempt():
                parts.append(term(each, scope, context, wanted))
    return tuple(parts)


def _named(node: Name, text: str, scope: Scope, context: Context, wanted: str) -> Term:
    match scope.values.get(text):
        case Unknown():
            return Const(1)
        case int(value):
            return terms.constant(value)
    if text in scope.variables:
        return Var(scope.variables[text])
    if text in SYMBOLS and text not in scope.values:
        return Var(SYMBOLS[text])
    candidates = [*scope.variables, *(name for name, value in scope.values.items() if isinstance(value, int)), *SYMBOLS]
    raise wrong_kind(node, wanted, candidates, scope, context)


def _sum(node: Binary, scope: Scope, context: Context, wanted: str) -> Term:
    """A chain of + and - is walked in a loop: it may be a thousand operands long."""
    operands = chain(node, ("+", "-"))
    parts = all_terms((each for _, each in operands), scope, context, wanted)
    return terms.add(*(part if sign == "+" else terms.scale(-1, part) for (sign, _), part in zip(operands, parts, strict=True)))


def chain(node: Binary, operators: tuple[str, ...]) -> list[tuple[str, Expression]]:
    """The operands of operators of one level, left to right, each with the operator before it (the first: operators[0])."""
    chained: list[tuple[str, Expression]] = []
    first: Expression = node
    while isinstance(first, Binary) and first.operator in operators:
        chained.append((first.operator, first.right))
        first = first.left
    chained.append((operators[0], first))
    return chained[::-1]


def _product(node: Binary, left: Term, right: Term, context: Context) -> Term:
    match node.operator, left, right:
        case "*", Const(factor), other:
            return terms.scale(factor, other)
        case "*", other, Const(factor):
            return terms.scale(factor, other)
        case "**", Const(base), Const(exponent):
            return _power(node, base, exponent, context)
        case "//" | "%", _, Const(divisor):
            if divisor < 1:
                raise context.problems.refusal("not-positive", "a divisor must be at least 1", node.right.span, f"this is {divisor}")
            return terms.floor_divide(left, divisor) if node.operator == "//" else terms.modulo(left, divisor)
    raise _not_affine(node, context)


def _power(node: Binary, base: int, exponent: int, context: Context) -> Term:
    if exponent < 0:
        raise context.problems.refusal("bad-exponent", "an exponent must not be negative", node.right.span, f"this is {exponent}")
    if abs(base) > 1 and exponent > _MAX_EXPONENT:
        raise OverflowError(exponent)
    return terms.constant(base**exponent)


def _not_affine(node: Binary, context: Context) -> RefusedError:
    text = print_expression(node)
    if node.operator == "*":
        title = f"`{text}` multiplies two terms that only the run knows"
        where, help = node.span, "one factor must be a constant: a number, a parameter, or made of these"
    elif node.operator == "**":
        title = f"`{text}` is a power of a term that only the run knows"
        where, help = node.span, "base and exponent must be constants: numbers, parameters, or made of these"
    else:
        title = f"`{text}` divides by a term that only the run knows"
        where, help = node.right.span, "a divisor must be a positive constant: a number, a parameter, or made of these"
    return context.problems.refusal("not-affine", title, where, "not affine", help=(help,))


def _function(node: Call, name: str, arguments: tuple[Argument, ...], scope: Scope, context: Context) -> Term:
    least, most = _ARITY[name]
    count = len(arguments)
    if count < least or (most is not None and count > most):
        wanted = f"{least}" if least == most else f"at least {least}"
        raise wrong_arity(name, wanted, count, node.span, context)
    for each in arguments:
        if each.name is not None:
            raise context.problems.refusal("unknown-argument", f"{name} has no argument named {each.name}", each.span, "not known")
    resolved = all_terms((each.value for each in arguments), scope, context)
    match name:
        case "min":
            return terms.extreme("min", *resolved)
        case "max":
            return terms.extreme("max", *resolved)
        case "abs":
            return terms.absolute(resolved[0])
        case _:
            return terms.clamp(resolved[0], resolved[1], resolved[2])


def wrong_arity(name: str, wanted: str, count: int, span: Span, context: Context) -> RefusedError:
    """The refusal of a call with the wrong number of arguments."""
    plural = "" if wanted.endswith(" 1") or wanted == "1" else "s"
    return context.problems.refusal("wrong-arity", f"{name} takes {wanted} argument{plural}", span, f"{count} given")
