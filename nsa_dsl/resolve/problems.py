"""Collecting user errors: resolution goes on after each, so that one run reports them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from nsa_dsl.diagnostics import Diagnostic, Label, Span

NEEDS_VALUES = frozenset(
    {
        "bad-density",
        "bad-exponent",
        "bad-layer-count",
        "bad-probability",
        "bad-range",
        "among-misaligned",
        "exceeds-grid",
        "keep-exceeds-count",
        "keep-per-head",
        "layer-out-of-range",
        "length-too-long",
        "lookahead",
        "every-with-queries",
        "not-an-option",
        "not-positive",
        "number-too-large",
        "overlapping-layers",
        "relation-too-large",
        "reuse-mismatch",
        "selection-misaligned",
        "too-small",
        "uncovered-layers",
        "union-too-long",
    }
)
"""Codes that depend on a parameter's value, so that they say nothing while a stand-in takes its place."""

_SHOWN_CALLS = 3

Result = TypeVar("Result")


class RefusedError(Exception):
    """One part could not be resolved, for a reason already reported."""


class Problems:
    """The user errors found so far.

    sketching: parameters without defaults hold stand-ins, so only names, kinds and arity can be judged.
    """

    def __init__(self) -> None:
        self.sketching = False
        self._found: dict[tuple[str, Span], Diagnostic] = {}
        self._calls: list[Label] = []
        self._contained = 0

    def report(
        self,
        code: str,
        title: str,
        span: Span,
        label: str = "",
        *,
        context: Iterable[Label] = (),
        help: Iterable[str] = (),
    ) -> None:
        """Note one error. The calls that led to its place become context; the same error at the same place counts once."""
        if self.sketching and code in NEEDS_VALUES:
            return
        places = tuple(context)
        told = {span, *(each.span for each in places)}
        calls = [each for each in self._calls[-_SHOWN_CALLS:] if each.span not in told]
        diagnostic = Diagnostic(code, title, Label(span, label), (*places, *calls), tuple(help))
        self._found.setdefault((code, span), diagnostic)

    def refusal(
        self,
        code: str,
        title: str,
        span: Span,
        label: str = "",
        *,
        context: Iterable[Label] = (),
        help: Iterable[str] = (),
    ) -> RefusedError:
        """Note one error and return what to raise: the part at hand is given up."""
        self.report(code, title, span, label, context=context, help=help)
        return RefusedError()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Contain RefusedError: what follows this block is resolved all the same."""
        try:
            yield
        except RefusedError:
            self._contained += 1

    def tried(self, work: Callable[[], Result], otherwise: Result) -> Result:
        """What `work` returns, or `otherwise` when it is refused."""
        with self.attempt():
            return work()
        return otherwise

    @contextmanager
    def together(self) -> Iterator[None]:
        """Parts that stand or fall as one: each is attempted, then RefusedError is raised if any was refused."""
        before = self._contained
        yield
        if self._contained > before:
            raise RefusedError

    @contextmanager
    def called_at(self, span: Span, text: str) -> Iterator[None]:
        """Errors inside are about a declaration's body; `span` is the call that gave it these arguments."""
        self._calls.append(Label(span, text))
        try:
            yield
        finally:
            self._calls.pop()

    @contextmanager
    def sketch(self) -> Iterator[None]:
        """Stand-ins are in use inside: errors about values are not noted."""
        before, self.sketching = self.sketching, True
        try:
            yield
        finally:
            self.sketching = before

    def __bool__(self) -> bool:
        return bool(self._found)

    def in_order(self) -> tuple[Diagnostic, ...]:
        """Everything found, by source in order of first mention, then by position."""
        sources = {each.primary.span.source: None for each in self._found.values()}
        rank = {source: index for index, source in enumerate(sources)}
        return tuple(sorted(self._found.values(), key=lambda each: (rank[each.primary.span.source], each.primary.span.start)))
