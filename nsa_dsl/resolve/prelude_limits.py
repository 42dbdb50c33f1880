"""Which arguments of the prelude's relations make sense: the one thing about them that the language cannot say."""

from __future__ import annotations

from collections.abc import Mapping

from nsa_dsl.diagnostics import Span
from nsa_dsl.resolve.scope import Context, Value
from nsa_dsl.syntax import RelationDeclaration

PRELUDE = "<prelude>"
"""The prelude's name in diagnostics: no file of a user can have it."""

LEAST: Mapping[str, Mapping[str, int]] = {
    "full": {},
    "causal": {},
    "window": {"w": 1},
    "around": {"l": 0, "r": 0},
    "first": {"n": 1},
    "blocks": {"b": 1},
    "dilated": {"w": 1, "d": 1},
    "stride": {"s": 1},
    "prefix": {"n": 1},
    "neighborhood_1d": {"k": 1},
    "neighborhood": {"H": 1, "W": 1, "kh": 1, "kw": 1},
    "neighborhood_3d": {"T": 1, "H": 1, "W": 1, "kt": 1, "kh": 1, "kw": 1},
    "outer_axis": {"s": 1, "n": 1, "k": 1},
    "inner_axis": {"s": 1, "n": 1, "k": 1},
}
"""The least sensible arguments of the prelude's relations: a window of 0 keys is a mistake, not an empty relation."""

AT_MOST: Mapping[str, Mapping[str, str]] = {
    "neighborhood": {"kh": "H", "kw": "W"},
    "neighborhood_3d": {"kt": "T", "kh": "H", "kw": "W"},
    "outer_axis": {"k": "n"},
    "inner_axis": {"k": "n"},
}
"""Arguments of the prelude's relations that another one bounds: exactly kh x kw neighbours need a grid that holds them."""


def check_prelude_arguments(declaration: RelationDeclaration, values: Mapping[str, Value], span: Span, context: Context) -> None:
    """Refuse arguments of a prelude relation that its text would take, but that can only be mistakes. Raises RefusedError."""
    if declaration.name.span.source != PRELUDE:
        return
    problems, name = context.problems, declaration.name.text
    for parameter, least in LEAST[name].items():
        value = values[parameter]
        if isinstance(value, int) and value < least:
            raise problems.refusal("too-small", f"{parameter} of {name} must be at least {least}", span, f"{parameter} is {value}")
    for parameter, bound in AT_MOST.get(name, {}).items():
        value, limit = values[parameter], values[bound]
        if isinstance(value, int) and isinstance(limit, int) and value > limit:
            raise problems.refusal(
                "exceeds-grid", f"a neighbourhood must fit into its grid: {parameter} <= {bound}", span,
                f"{parameter} is {value}, {bound} is {limit}",
            )  # fmt: skip
