"""The syntax tree: what the user wrote, before names mean anything.

Frozen values. Spans and comments do not count in equality, so `parse(print(tree)) == tree` is a plain comparison.
Relations, integers, conditions and selections share one expression grammar; `resolve` gives each place its type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from nsa_dsl.diagnostics import Span

NOWHERE = Span("", 0, 0, 1, 1)
"""The span of a node that no source text produced."""


@dataclass(frozen=True, slots=True)
class Integer:
    """`512`, `65_536`, `64k` (k = 1,024)."""

    value: int
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Real:
    """`0.5`: text keeps the digits, so that printing changes nothing."""

    text: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Name:
    """A reference: parameter, variable, symbol, relation without arguments, branch, memory or enumeration member."""

    text: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a call; name is None for a positional one."""

    name: str | None
    value: Expression
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Call:
    """`window(w)`, `top(n, block = b, ...)`, `min(a, b)`. span: all of it; the name starts where the span does."""

    name: str
    arguments: tuple[Argument, ...]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Negative:
    """`-x`."""

    operand: Expression
    span: Span = field(default=NOWHERE, compare=False)


BinaryOperator: TypeAlias = Literal["+", "-", "|", "&", "*", "//", "%", "**"]


@dataclass(frozen=True, slots=True)
class Binary:
    """Two operands. Tightest first: `**`, then `* // %`, then `&`, then `+ - |` (one level, grouped to the left)."""

    operator: BinaryOperator
    left: Expression
    right: Expression
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Comparison:
    """`a < b <= c`: len(operands) == len(operators) + 1. Operators: < <= > >= == !="""

    operators: tuple[str, ...]
    operands: tuple[Expression, ...]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Logical:
    """`a and b and c`, `a or b`; at least two operands, flattened only as far as the grammar does."""

    operator: Literal["and", "or"]
    operands: tuple[Expression, ...]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Negation:
    """`not x`."""

    operand: Expression
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class SetBuilder:
    """`{ i, j : condition }` or `{ i, j, h : condition }`: two or three variable names of the user's choosing."""

    variables: tuple[Name, ...]
    condition: Expression
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class UnionOver:
    """`union p in a..b R`: the union of R over p in [a, b)."""

    variable: Name
    low: Expression
    high: Expression
    body: Expression
    span: Span = field(default=NOWHERE, compare=False)


Expression: TypeAlias = Integer | Real | Name | Call | Negative | Binary | Comparison | Logical | Negation | SetBuilder | UnionOver


@dataclass(frozen=True, slots=True)
class Comments:
    """Comments that belong to a statement, texts without `#` and outer blanks: whole lines above it, and the rest of its line."""

    above: tuple[str, ...] = ()
    beside: str | None = None


NO_COMMENTS = Comments()


@dataclass(frozen=True, slots=True)
class Parameter:
    """`w = 512` or `w` in a declaration's head."""

    name: Name
    default: Expression | None
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Use:
    """`use "other.nsa"`."""

    path: str
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)


@dataclass(frozen=True, slots=True)
class RelationDeclaration:
    """`relation NAME(params) = R`."""

    name: Name
    parameters: tuple[Parameter, ...]
    body: Expression
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)


@dataclass(frozen=True, slots=True)
class Binding:
    """`NAME = expression` in a pattern."""

    name: Name
    value: Expression
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)


@dataclass(frozen=True, slots=True)
class OutputStatement:
    """`output gate(a, b)`."""

    value: Expression
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)


@dataclass(frozen=True, slots=True)
class KvPerBranch:
    """`kv per branch`."""

    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)


@dataclass(frozen=True, slots=True)
class AllowLookahead:
    """`allow lookahead`."""

    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)


@dataclass(frozen=True, slots=True)
class AssertRelation:
    """`assert causal`: every visible pair lies in the relation."""

    relation: Expression
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)


@dataclass(frozen=True, slots=True)
class AssertReach:
    """`assert reach R within L`."""

    relation: Expression
    within: Expression
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)


@dataclass(frozen=True, slots=True)
class AssertBound:
    """`assert density <= x at n` or `assert kv <= bytes at n`."""

    quantity: Literal["density", "kv"]
    bound: Expression
    at: Expression
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)


Assertion: TypeAlias = AssertRelation | AssertReach | AssertBound
PatternStatement: TypeAlias = Binding | OutputStatement | KvPerBranch | AllowLookahead | Assertion


@dataclass(frozen=True, slots=True)
class PatternDeclaration:
    """`pattern NAME(params) { ... }`. closing: comments before the brace that closes it."""

    name: Name
    parameters: tuple[Parameter, ...]
    body: tuple[PatternStatement, ...]
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)
    closing: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class LayerItem:
    """`nsa(n = 8) * 5 reuse(selected)`: a pattern, how many layers of it in a row, and the choices it takes from the last
    earlier layer that made them. pattern: a Name or a Call."""

    pattern: Name | Call
    times: Expression | None
    reuse: tuple[Name, ...]
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Repeat:
    """`repeat A, B * 5, C`: the items in turn until all layers (or all that no rule names) are filled."""

    items: tuple[LayerItem, ...]
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)


@dataclass(frozen=True, slots=True)
class LayerRule:
    """`0..2: dense` (half-open), `5: A` (high is None) or `rest: A` (low and high are None)."""

    low: Expression | None
    high: Expression | None
    item: LayerItem
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)


@dataclass(frozen=True, slots=True)
class LayersStatement:
    """`layers N { schedule }`."""

    count: Expression
    schedule: tuple[Repeat | LayerRule, ...]
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)
    closing: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class ModelDeclaration:
    """`model NAME(params) { layers N { ... } assert ... }`."""

    name: Name
    parameters: tuple[Parameter, ...]
    body: tuple[LayersStatement | Assertion, ...]
    span: Span = field(default=NOWHERE, compare=False)
    comments: Comments = field(default=NO_COMMENTS, compare=False)
    closing: tuple[str, ...] = field(default=(), compare=False)


Declaration: TypeAlias = Use | RelationDeclaration | PatternDeclaration | ModelDeclaration


@dataclass(frozen=True, slots=True)
class SpecFile:
    """One source file. name: what diagnostics call it; closing: comments after the last declaration."""

    declarations: tuple[Declaration, ...]
    name: str = field(default="", compare=False)
    closing: tuple[str, ...] = field(default=(), compare=False)


def children(node: Expression) -> tuple[Expression, ...]:
    """The direct sub-expressions: the one place that knows how expressions are shaped."""
    match node:
        case Integer() | Real() | Name():
            return ()
        case Call(_, arguments):
            return tuple(each.value for each in arguments)
        case Negative(operand) | Negation(operand):
            return (operand,)
        case Binary(_, left, right):
            return (left, right)
        case Comparison(_, operands) | Logical(_, operands):
            return operands
        case SetBuilder(_, condition):
            return (condition,)
        case UnionOver(_, low, high, body):
            return (low, high, body)


def walk(node: Expression) -> Iterator[Expression]:
    """The node and everything below it, parents first."""
    yield node
    for each in children(node):
        yield from walk(each)
