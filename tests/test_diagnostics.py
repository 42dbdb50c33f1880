"""Rendering of diagnostics, and suggestions."""

from __future__ import annotations

from nsa_dsl.diagnostics import Diagnostic, Label, Span, SpecError, did_you_mean, render, render_all

_TEXT = "pattern p {\r\n\ta = f(x)\r\n\r\n\r\n  output b\r\n}\r\n"


def _span(fragment: str, text: str = _TEXT, source: str = "a.nsa") -> Span:
    start = text.index(fragment)
    line = text.count("\n", 0, start) + 1
    return Span(source, start, start + len(fragment), line, start - (text.rfind("\n", 0, start) + 1) + 1)


def test_lines_carets_dashes_and_help() -> None:
    diagnostic = Diagnostic(
        "unknown-name",
        "no branch is called `b`",
        Label(_span("b\r\n"), "unknown"),
        (Label(_span("f(x)"), "the only branch"), Label(Span("b.nsa", 3, 4, 2, 1), "defined here")),
        ("did you mean `a`?", "or bind `b`"),
    )
    assert render(diagnostic, {"a.nsa": _TEXT}) == "\n".join(
        [
            "error[unknown-name]: no branch is called `b`",
            " --> a.nsa:5:10",
            "2 |  a = f(x)",
            "  |      ---- the only branch",
            "...",
            "5 |   output b",
            "  |          ^ unknown",
            "  = note: b.nsa:2:1: defined here",
            "  = help: did you mean `a`?",
            "  = help: or bind `b`",
        ]
    )


def test_a_span_over_several_lines_is_marked_to_the_end_of_its_first() -> None:
    text = "f(a,\n  b)"
    lines = render(Diagnostic("x", "y", Label(Span("t", 0, 8, 1, 1))), {"t": text}).splitlines()
    assert lines[2:] == ["1 | f(a,", "  | ^^^^"]


def test_the_end_of_the_text_can_be_marked() -> None:
    lines = render(Diagnostic("x", "y", Label(Span("t", 4, 4, 1, 5), "here")), {"t": "f(a,"}).splitlines()
    assert lines[2:] == ["1 | f(a,", "  |     ^ here"]


def test_control_characters_do_not_reach_the_terminal() -> None:
    text = "ab\x1b[31mcd\te"
    shown = render(Diagnostic("x", "y", Label(Span("\x1b]evil", 7, 8, 1, 8))), {"\x1b]evil": text})
    assert "\x1b" not in shown
    assert shown.splitlines()[2:] == ["1 | ab?[31mcd e", "  |        ^"]


def test_a_long_line_is_shown_around_its_marks() -> None:
    text = "a" * 5_000 + "X" + "b" * 5_000
    lines = render(Diagnostic("x", "y", Label(Span("t", 5_000, 5_001, 1, 5_001))), {"t": text}).splitlines()
    assert max(map(len, lines)) < 200
    assert lines[2][lines[3].index("^")] == "X"


def test_every_column_of_a_long_line_is_marked_truly() -> None:
    text = "".join(chr(0x4E00 + k) for k in range(700))
    for k in range(700):
        lines = render(Diagnostic("x", "y", Label(Span("t", k, k + 1, 1, k + 1))), {"t": text}).splitlines()
        assert lines[2][lines[3].index("^")] == text[k]


def test_an_unknown_source_still_renders() -> None:
    assert render(Diagnostic("x", "y", Label(Span("gone", 0, 1, 3, 1))), {}).splitlines()[1:] == [" --> gone:3:1", "3 |", "  | ^"]


def test_an_error_holds_all_diagnostics_and_their_text() -> None:
    both = (Diagnostic("x", "first", Label(Span("t", 0, 1, 1, 1))), Diagnostic("y", "second", Label(Span("t", 1, 2, 1, 2))))
    error = SpecError(both, {"t": "ab"})
    assert error.diagnostics == both
    assert str(error) == render_all(both, {"t": "ab"})
    assert str(error).count("\n\n") == 1


def test_suggestions() -> None:
    assert did_you_mean("windwo", ["window", "first"]) == "window"
    assert did_you_mean("zzz", ["window", "first"]) is None
