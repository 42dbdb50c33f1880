"""A checked spec: its declarations, ready to be instantiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, assert_never

from nsa_dsl.diagnostics import Label, Span, SpecError
from nsa_dsl.pattern import Model, Pattern
from nsa_dsl.relation import Condition
from nsa_dsl.resolve.arguments import check_fits, check_parameters, complete
from nsa_dsl.resolve.conditions import check_reserved
from nsa_dsl.resolve.kinds import suggestions
from nsa_dsl.resolve.models import model
from nsa_dsl.resolve.patterns import pattern
from nsa_dsl.resolve.prelude_limits import PRELUDE, check_prelude_arguments
from nsa_dsl.resolve.problems import Problems, RefusedError
from nsa_dsl.resolve.relations import body
from nsa_dsl.resolve.scope import MEMBERS, Context, Kind, Known, Named, Value, kind_of_declaration
from nsa_dsl.resolve.terms import GREATEST
from nsa_dsl.syntax import ModelDeclaration, PatternDeclaration, RelationDeclaration, SpecFile, Use

Result = TypeVar("Result")
Declared = TypeVar("Declared", RelationDeclaration, PatternDeclaration, ModelDeclaration)


@dataclass(frozen=True, slots=True)
class Spec:
    """The declarations of a spec, its `use`d files and the prelude; all of them have been checked with their defaults.

    name: what diagnostics call the spec; sources: source name -> text, for rendering diagnostics.
    """

    name: str
    sources: Mapping[str, str]
    _relations: Mapping[str, RelationDeclaration] = field(repr=False)
    _patterns: Mapping[str, PatternDeclaration] = field(repr=False)
    _models: Mapping[str, ModelDeclaration] = field(repr=False)
    _known: Known = field(repr=False, compare=False)

    @property
    def relations(self) -> tuple[str, ...]:
        """The names of the relations declared, in order, without the prelude's."""
        return tuple(name for name, each in self._relations.items() if each.name.span.source != PRELUDE)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The names of the patterns declared, in order."""
        return tuple(self._patterns)

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models declared, in order."""
        return tuple(self._models)

    def pattern(self, name: str, /, **overrides: int | float | str) -> Pattern:
        """The pattern of this name; overrides replace the defaults of its parameters. Raises SpecError."""

        def make(context: Context) -> Pattern:
            declaration = self._find(name, "pattern", self._patterns, context)
            return pattern(declaration, _override(declaration, overrides, context), context)

        return self._run(make)

    def model(self, name: str, /, **overrides: int | float | str) -> Model:
        """The model of this name; overrides replace the defaults of its parameters. Raises SpecError."""

        def make(context: Context) -> Model:
            declaration = self._find(name, "model", self._models, context)
            return model(declaration, _override(declaration, overrides, context), context)

        return self._run(make)

    def relation(self, name: str, /, *arguments: int | float | str, **named: int | float | str) -> Condition:
        """The relation of this name, the prelude's included, for these arguments. Raises SpecError."""

        def make(context: Context) -> Condition:
            declaration = self._find(name, "relation", self._relations, context)
            values = _override(declaration, _positions(declaration, arguments, named, context), context)
            check_prelude_arguments(declaration, values, declaration.name.span, context)
            return body(declaration, values, declaration.name.span, context)

        return self._run(make)

    def _run(self, make: Callable[[Context], Result]) -> Result:
        context = Context(self._relations, self._patterns, self._models, Problems(), self._known)
        try:
            return make(context)
        except RefusedError:
            raise SpecError(context.problems.in_order(), self.sources) from None

    def _find(self, name: str, kind: Kind, table: Mapping[str, Declared], context: Context) -> Declared:
        if name in table:
            return table[name]
        own = [each for each, declaration in table.items() if declaration.name.span.source != PRELUDE]
        helps = suggestions(name, table) or ((f"it declares {', '.join(own)}",) if own else ())
        start = Span(self.name, 0, 0, 1, 1)
        raise context.problems.refusal("not-declared", f"{self.name} declares no {kind} {name}", start, help=helps)


def _check(declaration: Named, context: Context) -> None:
    if any(each.default is None for each in declaration.parameters):
        with context.problems.sketch():
            _resolve(declaration, context)
    else:
        _resolve(declaration, context)


def _resolve(declaration: Named, context: Context) -> None:
    check_parameters(declaration, context)
    values = complete(declaration, {}, context)
    match declaration:
        case RelationDeclaration():
            body(declaration, values, declaration.name.span, context)
        case PatternDeclaration():
            pattern(declaration, values, context)
        case ModelDeclaration():
            model(declaration, values, context)
        case _:
            assert_never(declaration)


def _override(declaration: Named, overrides: Mapping[str, int | float | str], context: Context) -> dict[str, Value]:
    """The parameters' values, checked against the kinds that their defaults show. Raises RefusedError."""
    problems = context.problems
    parameters = {each.name.text: each for each in declaration.parameters}
    what = f"{kind_of_declaration(declaration)} {declaration.name.text}"
    with problems.together():
        for name, value in overrides.items():
            with problems.attempt():
                if name not in parameters:
                    helps = suggestions(name, parameters) or (f"it has {', '.join(parameters) or 'none'}",)
                    raise problems.refusal("unknown-parameter", f"{what} has no parameter {name}", declaration.name.span, help=helps)
                span = parameters[name].name.span
                _check_value(name, value, span, context)
                check_fits(value, name, parameters[name].default, span, context)
        missing = [name for name, each in parameters.items() if each.default is None and name not in overrides]
        if missing:
            with problems.attempt():
                raise problems.refusal(
                    "missing-argument",
                    f"{declaration.name.text} needs {' and '.join(missing)}",
                    parameters[missing[0]].name.span,
                    "no default",
                )
    return complete(declaration, overrides, context)


def _check_value(name: str, value: object, span: Span, context: Context) -> None:
    """Refuse a Python value that no spec could have written. Raises RefusedError."""
    match value:
        case bool():
            pass
        case int() if abs(value) <= GREATEST:
            return
        case int():
            raise context.problems.refusal("number-too-large", f"{name} leaves 32 bits", span, "more than 2,147,483,647 in magnitude")
        case float() if value - value == 0:
            return
        case str() if value in MEMBERS:
            return
        case str():
            raise context.problems.refusal("not-an-option", f"{value!r} is no option", span, help=suggestions(value, MEMBERS))
    raise context.problems.refusal("wrong-kind", f"{name} is an integer, a finite real number or an option", span, f"found {value!r}")


def _positions(
    declaration: RelationDeclaration,
    arguments: tuple[int | float | str, ...],
    named: Mapping[str, int | float | str],
    context: Context,
) -> dict[str, int | float | str]:
    """All arguments by name. Raises RefusedError."""
    names = [each.name.text for each in declaration.parameters]
    unnamed = dict(zip(names, arguments, strict=False))
    twice = [name for name in unnamed if name in named]
    if len(arguments) > len(names) or twice:
        raise context.problems.refusal(
            "wrong-arity",
            f"{declaration.name.text} takes {', '.join(names) or 'no arguments'}",
            declaration.name.span,
            f"{twice[0]} given twice" if twice else f"{len(arguments)} given",
        )
    return {**unnamed, **named}


def make_spec(name: str, files: Iterable[SpecFile], sources: Mapping[str, str]) -> Spec:
    """The checked spec made of these files, the prelude first. Raises SpecError with every error found."""
    relations: dict[str, RelationDeclaration] = {}
    patterns: dict[str, PatternDeclaration] = {}
    models: dict[str, ModelDeclaration] = {}
    problems = Problems()
    for file in files:
        for declaration in file.declarations:
            match declaration:
                case Use():
                    pass
                case RelationDeclaration():
                    _enter(declaration, relations, problems)
                case PatternDeclaration():
                    _enter(declaration, patterns, problems)
                case ModelDeclaration():
                    _enter(declaration, models, problems)
                case _:
                    assert_never(declaration)
    context = Context(relations, patterns, models, problems)
    declarations: tuple[Named, ...] = (*relations.values(), *patterns.values(), *models.values())
    for each in declarations:
        if each.name.span.source != PRELUDE:
            with problems.attempt():
                _check(each, context)
    if problems:
        raise SpecError(problems.in_order(), sources)
    return Spec(name, sources, relations, patterns, models, context.known)


def _enter(declaration: Declared, table: dict[str, Declared], problems: Problems) -> None:
    """Add a declaration to its table; a second one of the same name is reported with both places."""
    name = declaration.name
    first = table.setdefault(name.text, declaration)
    if first is not declaration:
        kind = kind_of_declaration(declaration)
        context = (Label(first.name.span, "first here"),)
        problems.report("duplicate-declaration", f"there are two {kind}s named {name.text}", name.span, "again", context=context)
    with problems.attempt():
        if isinstance(declaration, RelationDeclaration):
            check_reserved(name, problems)
    for each in declaration.parameters:
        with problems.attempt():
            check_reserved(each.name, problems)
