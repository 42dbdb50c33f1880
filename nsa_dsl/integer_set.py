"""Relations as isl integer sets over [i, j], and isl's sets and expressions back as conditions and terms.

Only the relation and tile modules see islpy. Every piece of isl work runs inside `limited`, whose context counts isl's
elementary operations: a relation that is too hard raises `TooComplex` instead of taking minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import reduce
from typing import assert_never, cast

import islpy as isl

from nsa_dsl.relation import (
    EMPTY,
    FULL,
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
    Symbol,
    Term,
    Truth,
    Var,
    conjunction,
    disjunction,
)
from nsa_dsl.terms import Comparison, push_negation, scaled, sum_of

PARAMETERS = ("N", "h", "heads", "kv_heads")
OPERATIONS = 1_500_000
"""isl operations that one analysis may spend: about a second."""


class TooComplex(Exception):  # noqa: N818 - not an error of the user's but an answer; every caller has a fall-back
    """isl gave up within its limit of operations."""


@contextmanager
def limited(operations: int = OPERATIONS) -> Iterator[isl.Context]:
    """An isl context that may spend so many operations. Raises TooComplex when they are spent."""
    context = isl.Context()
    context.set_max_operations(operations)
    try:
        yield context
    except isl.Error as error:
        if not is_exhausted(context):
            raise
        raise TooComplex(f"more than {operations:,} isl operations") from error


def is_exhausted(context: isl.Context) -> bool:
    """Whether the operations are spent: then everything fails, with whatever message; otherwise an error is a mistake."""
    try:
        isl.Set("[N] -> { [i] : 0 <= i < N }", context=context).is_empty()
    except isl.Error:
        return True
    return False


def pair_space(context: isl.Context) -> isl.Space:
    """The space [N, h, heads, kv_heads] -> { [i, j] }."""
    return isl.Space.create_from_names(context, set=["i", "j"], params=list(PARAMETERS))


def to_set(condition: Condition, context: isl.Context, *, across_documents: bool = True) -> isl.Set:
    """The pairs that the condition allows, positions unbounded: callers intersect with a domain.

    SameDocument allows every pair. across_documents: what its negation allows; every pair for what some packing may allow,
    none for what every packing allows.
    Raises ValueError for Chosen, which callers replace first, and isl.Error beyond the context's limit.
    """
    return _pairs(condition, pair_space(context), across_documents)


def _pairs(condition: Condition, space: isl.Space, across_documents: bool) -> isl.Set:
    match condition:
        case Truth(value):
            return isl.Set.universe(space) if value else isl.Set.empty(space)
        case SameDocument():
            return isl.Set.universe(space)
        case Not(SameDocument()):
            return isl.Set.universe(space) if across_documents else isl.Set.empty(space)
        case Compare(op, left, right):
            return _compare(op, to_affine(left, space), to_affine(right, space))
        case All(parts):
            return reduce(isl.Set.intersect, (_pairs(each, space, across_documents) for each in parts), isl.Set.universe(space)).coalesce()
        case Either(parts):
            return reduce(isl.Set.union, (_pairs(each, space, across_documents) for each in parts), isl.Set.empty(space)).coalesce()
        case Not(part):
            return _pairs(push_negation(part), space, across_documents)
        case Chosen(choice):
            raise ValueError(f"a choice is no integer set: {choice}")
        case _:
            assert_never(condition)


def _compare(op: str, left: isl.PwAff, right: isl.PwAff) -> isl.Set:
    match op:
        case "<":
            return left.lt_set(right)
        case "<=":
            return left.le_set(right)
        case ">":
            return left.gt_set(right)
        case ">=":
            return left.ge_set(right)
        case "==":
            return left.eq_set(right)
        case _:
            return left.ne_set(right)


def to_affine(term: Term, space: isl.Space) -> isl.PwAff:
    """The term as a piecewise quasi-affine expression over the space's dimensions and parameters.

    Raises ValueError for a symbol that the space lacks.
    """
    context = space.get_ctx()
    local = isl.LocalSpace.from_space(space)

    def value(number: int) -> isl.Val:
        return isl.Val.int_from_si(context, number)

    def visit(node: Term) -> isl.PwAff:
        match node:
            case Const(number):
                return isl.PwAff.from_aff(isl.Aff.val_on_domain(local, value(number)))
            case Var(name):
                for kind in (isl.dim_type.set, isl.dim_type.param):
                    position = space.find_dim_by_name(kind, name)
                    if position >= 0:
                        return isl.PwAff.var_on_domain(local, kind, position)
                raise ValueError(f"no such symbol in this set: {name}")
            case Sum(terms):
                return reduce(isl.PwAff.add, map(visit, terms))
            case Scale(factor, inner):
                return visit(inner).scale_val(value(factor))
            case FloorDiv(inner, divisor):
                return visit(inner).scale_down_val(value(divisor)).floor()
            case Modulo(inner, divisor):
                return visit(inner).mod_val(value(divisor))
            case Extreme(kind, terms):
                return reduce(isl.PwAff.max if kind == "max" else isl.PwAff.min, map(visit, terms))
            case Absolute(inner):
                affine = visit(inner)
                return affine.max(affine.neg())
            case _:
                assert_never(node)

    return visit(term)


def from_set(pairs: isl.Set, domain: isl.Set | None = None) -> Condition:
    """The condition that holds exactly on the set: without quantifiers, its divisions as FloorDiv and Modulo.

    domain: where the answer matters; what holds throughout the domain is left out.
    """
    pairs = as_parameters(pairs).coalesce()
    known = as_parameters(domain) if domain is not None else isl.Set.universe(pairs.get_space())
    pairs = pairs.gist(known).coalesce()
    if pairs.is_empty():
        return EMPTY
    return condition_of(isl.AstBuild.from_context(known).expr_from_set(pairs))


def as_parameters(pairs: isl.Set) -> isl.Set:
    """The set with its dimensions turned into parameters of the same names: what isl prints expressions of."""
    count = pairs.dim(isl.dim_type.set)
    parameters = pairs.dim(isl.dim_type.param)
    return pairs.move_dims(isl.dim_type.param, parameters, isl.dim_type.set, 0, count).params()


_COMPARISONS: Mapping[str, Comparison] = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def enum_name(kind: object) -> str:
    """The name of a member of one of isl's enumerations, which its stubs declare as integers."""
    return cast(Enum, kind).name


def condition_of(expression: isl.AstExpr) -> Condition:
    """isl's Boolean expression as a condition; its identifiers are symbols.

    Raises TooComplex for an expression that conditions cannot say.
    """
    if enum_name(expression.get_type()) == "int":
        return FULL if expression.get_val().to_python() else EMPTY
    operation = enum_name(expression.get_op_type())
    arguments = [expression.get_op_arg(index) for index in range(expression.get_op_n_arg())]
    match operation:
        case "and_" | "and_then":
            return conjunction(*map(condition_of, arguments))
        case "or_" | "or_else":
            return disjunction(*map(condition_of, arguments))
        case "eq" | "lt" | "le" | "gt" | "ge":
            left, right = map(term_of, arguments)
            if operation == "ge" and not isinstance(right, Const):
                return Compare("<=", right, left)
            return Compare(_COMPARISONS[operation], left, right)
    raise TooComplex(f"no condition says what isl does: {expression.to_C_str()}")


def term_of(expression: isl.AstExpr) -> Term:
    """isl's integer expression as a term; see condition_of. isl's exact and non-negative divisions agree with floor."""
    match enum_name(expression.get_type()):
        case "int":
            return Const(expression.get_val().to_python())
        case "id":
            return Var(cast(Symbol, expression.get_id().get_name()))
    terms = [term_of(expression.get_op_arg(index)) for index in range(expression.get_op_n_arg())]
    match enum_name(expression.get_op_type()), terms:
        case "add", _:
            return sum_of(*terms)
        case "sub", (left, right):
            return sum_of(left, scaled(-1, right))
        case "minus", (inner,):
            return scaled(-1, inner)
        case "max", _:
            return Extreme("max", tuple(terms))
        case "min", _:
            return Extreme("min", tuple(terms))
        case "mul", (Const(factor), inner) | (inner, Const(factor)):
            return scaled(factor, inner)
        case "div" | "fdiv_q" | "pdiv_q", (inner, Const(divisor)) if divisor > 0:
            return FloorDiv(inner, divisor)
        case "pdiv_r" | "zdiv_r", (inner, Const(divisor)) if divisor > 0:
            return Modulo(inner, divisor)
    raise TooComplex(f"no term says what isl does: {expression.to_C_str()}")
