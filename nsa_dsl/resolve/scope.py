"""What names mean at one place of a spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from nsa_dsl.diagnostics import Span
from nsa_dsl.pattern import Pattern
from nsa_dsl.relation import Condition
from nsa_dsl.relation import Symbol as RelationSymbol
from nsa_dsl.resolve.problems import Problems, RefusedError
from nsa_dsl.syntax import ModelDeclaration, PatternDeclaration, RelationDeclaration


@dataclass(frozen=True, slots=True)
class Unknown:
    """Stands for the value of a parameter without default while its declaration is checked by itself."""


UNKNOWN = Unknown()

Value: TypeAlias = int | float | str | Unknown
"""A parameter's value; a string is the name of an enumeration's member."""

Parameters: TypeAlias = tuple[tuple[str, Value], ...]
Named: TypeAlias = RelationDeclaration | PatternDeclaration | ModelDeclaration

SYMBOLS: Mapping[str, RelationSymbol] = {"N": "N", "heads": "heads", "kv_heads": "kv_heads"}
"""Run-time integers that every set-builder may name."""

MEMBERS = frozenset(
    {
        "mean", "max", "weighted", "mlp", "minmax", "scores", "indices",
        "group", "head", "all", "sum", "alibi", "learned",
    }
)  # fmt: skip
"""Every member of every enumeration."""

FUNCTIONS: Mapping[str, str] = {
    "min": "an integer",
    "max": "an integer",
    "abs": "an integer",
    "clamp": "an integer",
    "compress": "a memory",
    "attend": "a branch",
    "top": "a choice",
    "over": "a choice",
    "mass": "a choice",
    "index": "a score",
    "gate": "an output",
    "mix": "an output",
    "merge": "an output",
}
"""Built-in functions and the kind of what they make."""

RESERVED = MEMBERS | SYMBOLS.keys() | FUNCTIONS.keys() | {"tokens", "document"}
"""Names that no relation, parameter, binding or variable may take, because one place or another would read them otherwise."""

MAX_DEPTH = 100
"""Levels of expressions inside expressions, through calls of relations too: far below Python's own recursion limit."""

MAX_WORK = 30_000
"""Expressions looked at in one run, unions unrolled: well under a second."""


@dataclass(frozen=True, slots=True)
class Scope:
    """values: parameters and union variables; variables: those of the set-builder around; bindings: name -> "a memory" or
    "a branch" in a pattern."""

    values: Mapping[str, Value] = field(default_factory=dict)
    variables: Mapping[str, RelationSymbol] = field(default_factory=dict)
    bindings: Mapping[str, str] = field(default_factory=dict)

    def with_value(self, name: str, value: Value) -> Scope:
        """This scope and one more value."""
        return replace(self, values={**self.values, name: value})


@dataclass(frozen=True, slots=True)
class KnownRelation:
    """A resolved relation and its number of nodes."""

    condition: Condition
    nodes: int


Known: TypeAlias = dict[tuple[str, Parameters, bool], KnownRelation | None]
"""Relations by name, parameters and whether these are stand-ins; None for one that was refused."""


class Context:
    """One resolution run: the declarations by kind, the problems found, and results already known.

    known: relations that an earlier run resolved. What loaded once must resolve again, also where a chain of declarations is
    so long that only resolving them in their order keeps it within MAX_DEPTH.
    """

    def __init__(
        self,
        relations: Mapping[str, RelationDeclaration],
        patterns: Mapping[str, PatternDeclaration],
        models: Mapping[str, ModelDeclaration],
        problems: Problems,
        known: Known | None = None,
    ) -> None:
        self.relations = relations
        self.patterns = patterns
        self.models = models
        self.problems = problems
        self.known: Known = dict(known or {})
        self.known_patterns: dict[tuple[str, Parameters, bool], Pattern | None] = {}
        self.open_relations: list[tuple[str, Span]] = []
        self._depth = 0
        self._work = 0

    @contextmanager
    def deeper(self, span: Span) -> Iterator[None]:
        """One level down. Refuses at MAX_DEPTH, so that no spec can exhaust Python's stack."""
        if self._depth >= MAX_DEPTH:
            raise self.problems.refusal("too-deep", f"expressions nest more than {MAX_DEPTH} levels deep", span, "level too many")
        self.spend(1, span)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def spend(self, work: int, span: Span) -> None:
        """Count work done, in expressions looked at. Refuses at MAX_WORK, so that no spec can take long."""
        if self._work > MAX_WORK:
            raise RefusedError
        self._work += work
        if self._work > MAX_WORK:
            raise self.problems.refusal(
                "spec-too-complex",
                "resolving this spec takes too long",
                span,
                "given up here",
                help=("nested unions multiply: write one as a condition, `low <= (i - j) // b < high`",),
            )


Kind: TypeAlias = Literal["relation", "pattern", "model"]


def kind_of_declaration(declaration: Named) -> Kind:
    """What the declaration declares, as its keyword says."""
    match declaration:
        case RelationDeclaration():
            return "relation"
        case PatternDeclaration():
            return "pattern"
        case ModelDeclaration():
            return "model"
