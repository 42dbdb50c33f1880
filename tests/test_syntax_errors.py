"""Syntax errors: each malformed example gets its own message, several errors are reported at once."""

from __future__ import annotations

import pytest
from golden_files import check_golden

from nsa_dsl import mistakes
from nsa_dsl.diagnostics import SpecError
from nsa_dsl.mistakes import Mistake, describe, load, situation_of
from nsa_dsl.parser import parse

_EXAMPLES = [(mistake, example) for mistake in load() for example in mistake.examples]


def _refusal(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse(text, "spec.nsa")
    return caught.value


def test_there_are_many_mistakes_and_each_says_the_way_out() -> None:
    assert len(load()) >= 40
    for mistake in load():
        assert mistake.examples, mistake.code
        assert mistake.help, mistake.code
        assert not mistake.title.endswith("."), mistake.code


@pytest.mark.parametrize(("mistake", "example"), _EXAMPLES, ids=[f"{m.code}-{k}" for k, (m, _) in enumerate(_EXAMPLES)])
def test_each_example_gets_the_message_of_its_file(mistake: Mistake, example: str) -> None:
    assert describe(situation_of(example)).code == mistake.code


@pytest.mark.parametrize("mistake", load(), ids=lambda each: each.code)
def test_each_mistake_renders_as_held(mistake: Mistake) -> None:
    check_golden(f"syntax/{mistake.code}.txt", "\n\n".join(str(_refusal(each)) for each in mistake.examples[:3]))


def test_an_example_that_parses_is_a_defect() -> None:
    with pytest.raises(ValueError, match="not malformed"):
        situation_of("relation r = a")


def test_a_mistake_that_no_example_shows_gets_a_plain_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistakes, "_known", dict)
    diagnostic = describe(situation_of("relation r = f(a b)"))
    assert diagnostic.code == "unexpected-token"
    assert diagnostic.title == "unexpected `b`"
    assert "`,`" in diagnostic.help[0]
    assert describe(situation_of("relation r = a |")).help == ("expected here: a call, a number, `{`, `(`, `-`, a name, `union`",)


_MANY = """pattern p {
  a = attend(tokens, causal
  b = attend(tokens window(w))
  x = a / 2
  y = a && b
  output
}
relation r = { i, j : i = j }
patern q { }
relation s = {i, j i == j}
model m { layers 24 { repeat } assert kv < 5 at 64k assert reach full }
"""


def test_several_mistakes_are_reported_at_once() -> None:
    check_golden("syntax/_several.txt", str(_refusal(_MANY)))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("pattern p {\n  selected = attend(tokens, causal & top(16, block = 64 by = mean))\n  output selected\n}", "missing-comma"),
        ("pattern p {\n  a = attend(tokens, causal)\n  output a\n", "unclosed-brace"),
        ("pattern p {\n  a = attend(tokens, window(512)\n  output a\n}", "unclosed-parenthesis"),
        ("patern p { output a }", "unknown-declaration"),
        ("pattern p { output attend(tokens, causal) }\nlayer x { }", "unknown-declaration"),
        ("relation r = { i, j : i // 2 = j }", "assignment-in-condition"),
        ("relation r = { i, j ; i == j }", "semicolon"),
        ("relation r = { i, j : i ! = j }", "exclamation-mark"),
        ("pattern p { output attend(tokens, causal && first(4)) }", "double-ampersand"),
        ("pattern p { a attend(tokens, causal) output a }", "missing-equals"),
    ],
)
def test_common_slips_in_context(text: str, code: str) -> None:
    assert [each.code for each in _refusal(text).diagnostics] == [code]
