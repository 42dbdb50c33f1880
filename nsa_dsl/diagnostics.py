"""User errors as data: located, coded, collected, and rendered the way rustc renders them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of characters in one source: offsets, with 1-based line and column of its start."""

    source: str
    start: int
    end: int
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Label:
    """A short remark under one span."""

    span: Span
    text: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One user error.

    code: stable, kebab-case (`selection-misaligned`); title: one sentence, no full stop; primary: what is wrong and
    where; context: other places that matter, in source order; help: the way out, one or more lines.
    """

    code: str
    title: str
    primary: Label
    context: tuple[Label, ...] = ()
    help: tuple[str, ...] = ()


MOST_SHOWN = 20
"""How many errors are printed: more would hide the first."""


class SpecError(Exception):
    """A spec was refused. `diagnostics` holds every error found, in source order; str() renders the first MOST_SHOWN."""

    def __init__(self, diagnostics: Iterable[Diagnostic], sources: Mapping[str, str]) -> None:
        """sources: source name -> text, for rendering the lines that the spans point into."""
        self.diagnostics = tuple(diagnostics)
        self.sources = dict(sources)
        text = render_all(self.diagnostics[:MOST_SHOWN], self.sources)
        left = len(self.diagnostics) - MOST_SHOWN
        super().__init__(f"{text}\n\nand {left:,} more" if left > 0 else text)


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `word` most likely misspells, or None when none is close."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return close[0] if close else None


def render_all(diagnostics: Iterable[Diagnostic], sources: Mapping[str, str]) -> str:
    """All diagnostics as text, one blank line between them."""
    return "\n\n".join(render(each, sources) for each in diagnostics)


def render(diagnostic: Diagnostic, sources: Mapping[str, str]) -> str:
    """One diagnostic as text: title, location, the source lines with carets and dashes, help."""
    primary = diagnostic.primary
    labels = sorted(
        [(primary, "^"), *((each, "-") for each in diagnostic.context if each.span.source == primary.span.source)],
        key=lambda pair: (pair[0].span.line, pair[0].span.column),
    )
    foreign = [each for each in diagnostic.context if each.span.source != primary.span.source]
    width = max(len(str(label.span.line)) for label, _ in labels)
    lines = [f"error[{diagnostic.code}]: {diagnostic.title}", f"{' ' * width}--> {_where(primary.span)}"]
    text = sources.get(primary.span.source, "").split("\n")
    previous: tuple[int, str] | None = None
    for label, mark in labels:
        number = label.span.line
        shown, column = _window(_line(text, number), label.span.column)
        if (number, shown) != previous:
            if previous is not None and number > previous[0] + 1:
                lines.append("...")
            lines.append(f"{number:>{width}} | {shown}".rstrip())
        previous = (number, shown)
        length = max(1, min(label.span.end - label.span.start, len(shown) - column + 1))
        lines.append(f"{' ' * width} | {' ' * (column - 1)}{mark * length} {label.text}".rstrip())
    lines.extend(f"{' ' * width} = note: {_where(each.span)}: {each.text}" for each in foreign)
    lines.extend(f"{' ' * width} = help: {each}" for each in diagnostic.help)
    return "\n".join(lines)


_WINDOW = 160
"""The most columns of a source line that a diagnostic shows."""


def _where(span: Span) -> str:
    return f"{_visible(span.source)}:{span.line}:{span.column}"


def _visible(text: str) -> str:
    """Control characters replaced one for one, so that columns stay true and a terminal takes no orders."""
    return "".join(c if c.isprintable() else "?" for c in text.replace("\t", " "))


def _line(text: list[str], number: int) -> str:
    """Line `number` (1-based), without the carriage return that may end it."""
    return _visible(text[number - 1].removesuffix("\r")) if 1 <= number <= len(text) else ""


def _window(line: str, column: int) -> tuple[str, int]:
    """The line, or of a long one the part around `column`, and the column there."""
    if len(line) <= _WINDOW:
        return line, column
    start = (column - 1) // (_WINDOW // 2) * (_WINDOW // 2)
    start = max(0, min(start - _WINDOW // 4, len(line) - _WINDOW))
    head, tail = "..." if start else "", "..." if start + _WINDOW < len(line) else ""
    return head + line[start : start + _WINDOW] + tail, column - start + len(head)
