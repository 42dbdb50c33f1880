"""Assertions of patterns and models, as claims for later stages to prove or refute."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from nsa_dsl.pattern import Bound, Claim, Reach, Within
from nsa_dsl.printer import print_expression
from nsa_dsl.resolve.arguments import real
from nsa_dsl.resolve.integers import at_least, layer_count
from nsa_dsl.resolve.problems import RefusedError
from nsa_dsl.resolve.relations import static
from nsa_dsl.resolve.scope import Context, Scope
from nsa_dsl.syntax import AssertBound, Assertion, AssertReach, AssertRelation, Expression

MAX_ASSERTIONS = 64
"""Of one declaration."""

MAX_LENGTH = 2**22
"""The longest sequence that a density is counted for, in tokens: a count takes memory for every query."""


def claim(statement: Assertion, scope: Scope, context: Context) -> Claim:
    """The assertion with its names resolved. Raises RefusedError."""
    tried, together = context.problems.tried, context.problems.together
    match statement:
        case AssertRelation(relation):
            return Within(static(relation, scope, context, "an assertion"), f"assert {print_expression(relation)}")
        case AssertReach(relation, within):
            text = f"assert reach {print_expression(relation)} within {print_expression(within)}"
            with together():
                layers = tried(lambda: layer_count(within, scope, context), 1)
                allowed = tried(lambda: static(relation, scope, context, "an assertion"), None)
            if allowed is None:
                raise RefusedError
            return Reach(allowed, layers, text)
        case AssertBound(quantity, bound, at):
            text = f"assert {quantity} <= {print_expression(bound)} at {print_expression(at)}"
            with together():
                limit = tried(lambda: real(bound, scope, context), 1.0)
                length = tried(lambda: _length(at, scope, context), 1)
            if limit < 0 or (quantity == "density" and limit > 1):
                raise context.problems.refusal(
                    "bad-density" if quantity == "density" else "not-positive",
                    "a density lies between 0 and 1" if quantity == "density" else "a number of bytes must not be negative",
                    bound.span,
                    f"this is {limit:g}",
                )
            return Bound(quantity, limit, length, text)
        case _:
            assert_never(statement)


def _length(node: Expression, scope: Scope, context: Context) -> int:
    length = at_least(1, node, scope, context, "a length")
    if length > MAX_LENGTH:
        raise context.problems.refusal("length-too-long", f"a length is at most {MAX_LENGTH:,} tokens", node.span, f"this is {length:,}")
    return length


def check_assertions(statements: Iterable[object], context: Context) -> None:
    """Report more assertions than one declaration may make: each one is proved by itself."""
    assertions = [each for each in statements if isinstance(each, AssertRelation | AssertReach | AssertBound)]
    if len(assertions) > MAX_ASSERTIONS:
        extra = assertions[MAX_ASSERTIONS]
        title = f"a declaration makes at most {MAX_ASSERTIONS} assertions; this one makes {len(assertions):,}"
        context.problems.report("too-many-assertions", title, extra.span, "one too many")
