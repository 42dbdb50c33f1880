"""Static visibility: a relation is a condition over the query position i, the key position j and the query head h.

The resolved form is one small tree. Set algebra has become logic (`A & B` is `All`, `A | B` is `Either`, `A - B` is
`All((A, Not(B)))`), so everything downstream handles conditions only. Its meaning is `allows`, on integers; the integer
sets, block forms, generated masks and dense masks are all held to that function by property tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, assert_never

Symbol: TypeAlias = Literal["i", "j", "h", "N", "heads", "kv_heads", "tile"]
"""i: query position, j: key position, h: query head, N: sequence length (all in the same unit: tokens or blocks).
tile: index of a query tile; occurs in loop bounds only, never in a relation."""


@dataclass(frozen=True, slots=True)
class Const:
    """An integer."""

    value: int


@dataclass(frozen=True, slots=True)
class Var:
    """A symbol whose value is known only at run time."""

    name: Symbol


@dataclass(frozen=True, slots=True)
class Sum:
    """terms[0] + terms[1] + ..."""

    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """factor * term; a difference is a sum with a factor of -1."""

    factor: int
    term: Term


@dataclass(frozen=True, slots=True)
class FloorDiv:
    """term // divisor, rounding down for negative terms too; divisor >= 1."""

    term: Term
    divisor: int


@dataclass(frozen=True, slots=True)
class Modulo:
    """term % divisor, in [0, divisor) for negative terms too; divisor >= 1."""

    term: Term
    divisor: int


@dataclass(frozen=True, slots=True)
class Extreme:
    """The least or the greatest of the terms."""

    kind: Literal["min", "max"]
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Absolute:
    """abs(term)."""

    term: Term


Term: TypeAlias = Const | Var | Sum | Scale | FloorDiv | Modulo | Extreme | Absolute


@dataclass(frozen=True, slots=True)
class Truth:
    """Every pair (True) or none (False)."""

    value: bool


@dataclass(frozen=True, slots=True)
class Compare:
    """left <op> right."""

    op: Literal["<", "<=", ">", ">=", "==", "!="]
    left: Term
    right: Term


@dataclass(frozen=True, slots=True)
class Not:
    """The pairs that `part` does not allow."""

    part: Condition


@dataclass(frozen=True, slots=True)
class All:
    """The pairs that every part allows."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """The pairs that at least one part allows."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class SameDocument:
    """Query and key lie in one document of a packed batch; every pair when the call packs nothing. Only ever removes pairs."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Key j lies in a block that the choice of this name made for query i (and head h)."""

    choice: str


Condition: TypeAlias = Truth | Compare | Not | All | Either | SameDocument | Chosen

FULL = Truth(True)
EMPTY = Truth(False)
CAUSAL = Compare("<=", Var("j"), Var("i"))


def evaluate(node: Term | Condition, environment: Mapping[str, Any]) -> Any:
    """The value of a term or condition on Python integers, or elementwise on NumPy or torch integer arrays.

    environment: symbol -> value; "same_document" -> truth; "chosen:NAME" -> truth of Chosen(NAME).
    Raises KeyError for a symbol the environment lacks.
    """
    match node:
        case Const(value) | Truth(value):
            return value
        case Var(name):
            return environment[name]
        case Sum(terms):
            return sum((evaluate(each, environment) for each in terms[1:]), evaluate(terms[0], environment))
        case Scale(factor, term):
            return factor * evaluate(term, environment)
        case FloorDiv(term, divisor):
            return evaluate(term, environment) // divisor
        case Modulo(term, divisor):
            return evaluate(term, environment) % divisor
        case Extreme(kind, terms):
            result = evaluate(terms[0], environment)
            for each in terms[1:]:
                other = evaluate(each, environment)
                distance = abs(result - other)
                result = (result + other + (distance if kind == "max" else -distance)) // 2
            return result
        case Absolute(term):
            return abs(evaluate(term, environment))
        case Compare(op, left, right):
            return _compare(op, evaluate(left, environment), evaluate(right, environment))
        case Not(part):
            return evaluate(part, environment) ^ True
        case All(parts):
            result = True
            for part in parts:
                result = result & evaluate(part, environment)
            return result
        case Either(parts):
            result = False
            for part in parts:
                result = result | evaluate(part, environment)
            return result
        case SameDocument():
            return environment["same_document"]
        case Chosen(choice):
            return environment[f"chosen:{choice}"]
        case _:
            assert_never(node)


def _compare(op: str, left: Any, right: Any) -> Any:
    match op:
        case "<":
            return left < right
        case "<=":
            return left <= right
        case ">":
            return left > right
        case ">=":
            return left >= right
        case "==":
            return left == right
        case _:
            return left != right


def allows(relation: Condition, i: int, j: int, h: int, n: int, heads: int = 1, kv_heads: int = 1) -> bool:
    """Whether query i of head h sees key j at sequence length n: the meaning of a static relation.

    Positions outside [0, n) are never allowed. Unpacked batch: `document` allows every pair.
    """
    if not (0 <= i < n and 0 <= j < n):
        return False
    environment = {"i": i, "j": j, "h": h, "N": n, "heads": heads, "kv_heads": kv_heads, "same_document": True}
    return bool(evaluate(relation, environment))


def children(node: Term | Condition) -> tuple[Term | Condition, ...]:
    """The direct parts of a node: the one place that knows how trees are shaped."""
    match node:
        case Sum(terms) | Extreme(_, terms):
            return terms
        case Scale(_, term) | FloorDiv(term, _) | Modulo(term, _) | Absolute(term):
            return (term,)
        case Compare(_, left, right):
            return (left, right)
        case Not(part):
            return (part,)
        case All(parts) | Either(parts):
            return parts
        case Const() | Var() | Truth() | SameDocument() | Chosen():
            return ()
        case _:
            assert_never(node)


def walk(node: Term | Condition) -> Iterator[Term | Condition]:
    """The node and everything below it, parents first."""
    yield node
    for each in children(node):
        yield from walk(each)


def symbols(node: Term | Condition) -> frozenset[str]:
    """The names of the symbols that occur."""
    return frozenset(each.name for each in walk(node) if isinstance(each, Var))


def choices(node: Condition) -> tuple[str, ...]:
    """The names of the choices that occur, in order of first occurrence."""
    return tuple(dict.fromkeys(each.choice for each in walk(node) if isinstance(each, Chosen)))


def substitute(node: Term, values: Mapping[str, Term]) -> Term:
    """The term with symbols replaced by terms."""
    match node:
        case Const():
            return node
        case Var(name):
            return values.get(name, node)
        case Sum(terms):
            return Sum(tuple(substitute(each, values) for each in terms))
        case Scale(factor, term):
            return Scale(factor, substitute(term, values))
        case FloorDiv(term, divisor):
            return FloorDiv(substitute(term, values), divisor)
        case Modulo(term, divisor):
            return Modulo(substitute(term, values), divisor)
        case Extreme(kind, terms):
            return Extreme(kind, tuple(substitute(each, values) for each in terms))
        case Absolute(term):
            return Absolute(substitute(term, values))
        case _:
            assert_never(node)


def rewrite(node: Condition, values: Mapping[str, Term], atoms: Mapping[Condition, Condition] | None = None) -> Condition:
    """The condition with symbols replaced by terms and whole atoms (Chosen, SameDocument) by conditions, then simplified."""
    atoms = atoms or {}
    match node:
        case Chosen() | SameDocument():
            return atoms.get(node, node)
        case Truth():
            return node
        case Compare(op, left, right):
            return Compare(op, substitute(left, values), substitute(right, values))
        case Not(part):
            return negate(rewrite(part, values, atoms))
        case All(parts):
            return conjunction(*(rewrite(each, values, atoms) for each in parts))
        case Either(parts):
            return disjunction(*(rewrite(each, values, atoms) for each in parts))
        case _:
            assert_never(node)


def transposed(relation: Condition) -> Condition:
    """The relation with i and j exchanged: (i, j) is allowed when (j, i) was. Atoms stay; Chosen then says that query j took the
    block of key i."""
    return rewrite(relation, {"i": Var("j"), "j": Var("i")})


def conjunction(*parts: Condition) -> Condition:
    """All parts, flattened, without duplicates, `full` dropped and `empty` absorbing."""
    flat: dict[Condition, None] = {}
    for each in parts:
        for inner in each.parts if isinstance(each, All) else (each,):
            flat[inner] = None
    if EMPTY in flat:
        return EMPTY
    flat.pop(FULL, None)
    kept = tuple(flat)
    return FULL if not kept else kept[0] if len(kept) == 1 else All(kept)


def disjunction(*parts: Condition) -> Condition:
    """At least one part, flattened, without duplicates, `empty` dropped and `full` absorbing."""
    flat: dict[Condition, None] = {}
    for each in parts:
        for inner in each.parts if isinstance(each, Either) else (each,):
            flat[inner] = None
    if FULL in flat:
        return FULL
    flat.pop(EMPTY, None)
    kept = tuple(flat)
    return EMPTY if not kept else kept[0] if len(kept) == 1 else Either(kept)


def negate(part: Condition) -> Condition:
    """The complement."""
    match part:
        case Truth(value):
            return Truth(not value)
        case Not(inner):
            return inner
        case _:
            return Not(part)
