"""Text to tree: the language's examples, spans, words that stay names, comments, and refusals before parsing."""

from __future__ import annotations

import subprocess
import sys
import time

import lark
import pytest

from nsa_dsl import syntax as s
from nsa_dsl.diagnostics import Diagnostic, SpecError
from nsa_dsl.parser import parse
from nsa_dsl.tokens import grammar

NSA = """# Native Sparse Attention
pattern nsa(l = 32, d = 16, b = 64, n = 16, w = 512) {
    summary    = compress(block = l, stride = d, by = mlp)
    compressed = attend(summary, causal)
    selected   = attend(tokens, causal & top(n, block = b, by = compressed, share = group,
                                             keep = first(1) | window(2)))
    windowed   = attend(tokens, window(w))
    output gate(compressed, selected, windowed)

    assert causal
}
"""


def _errors(text: str | bytes) -> tuple[Diagnostic, ...]:
    with pytest.raises(SpecError) as caught:
        parse(text, "t.nsa")
    return caught.value.diagnostics


def _codes(text: str | bytes) -> list[str]:
    return [each.code for each in _errors(text)]


def _value(text: str) -> s.Expression:
    declaration = parse(f"relation r = {text}").declarations[0]
    assert isinstance(declaration, s.RelationDeclaration)
    return declaration.body


def test_the_paper_s_configuration() -> None:
    (pattern,) = parse(NSA).declarations
    assert isinstance(pattern, s.PatternDeclaration)
    assert [each.name.text for each in pattern.parameters] == ["l", "d", "b", "n", "w"]
    assert pattern.parameters[4].default == s.Integer(512)
    assert [type(each).__name__ for each in pattern.body] == ["Binding"] * 4 + ["OutputStatement", "AssertRelation"]
    assert pattern.comments.above == ("Native Sparse Attention",)
    selected = pattern.body[2]
    assert isinstance(selected, s.Binding)
    assert isinstance(selected.value, s.Call)
    where = selected.value.arguments[1].value
    assert isinstance(where, s.Binary)
    assert where.operator == "&"
    assert isinstance(where.right, s.Call)
    assert [each.name for each in where.right.arguments] == [None, "block", "by", "share", "keep"]


def test_every_kind_of_statement() -> None:
    text = """use "a.nsa" pattern p { kv per branch allow lookahead output a assert density <= 0.1 at 64k assert kv <= 8 at 1k }
    model m(n) { layers n { 0..2: a 5: b(w = 3) rest: c * 2 reuse(x, y) repeat d, e * 5 } assert reach full within 2 }"""
    use, pattern, model = parse(text).declarations
    assert use == s.Use("a.nsa")
    assert isinstance(pattern, s.PatternDeclaration)
    assert pattern.body[:2] == (s.KvPerBranch(), s.AllowLookahead())
    assert pattern.body[3] == s.AssertBound("density", s.Real("0.1"), s.Integer(65_536))
    assert isinstance(model, s.ModelDeclaration)
    layers = model.body[0]
    assert isinstance(layers, s.LayersStatement)
    assert layers.schedule[0] == s.LayerRule(s.Integer(0), s.Integer(2), s.LayerItem(s.Name("a"), None, ()))
    assert layers.schedule[2] == s.LayerRule(None, None, s.LayerItem(s.Name("c"), s.Integer(2), (s.Name("x"), s.Name("y"))))
    assert model.body[1] == s.AssertReach(s.Name("full"), s.Integer(2))


def test_precedence() -> None:
    a, b, c, d = map(s.Name, "abcd")
    assert _value("a & b | c - d") == s.Binary("-", s.Binary("|", s.Binary("&", a, b), c), d)
    assert _value("a | b & c") == s.Binary("|", a, s.Binary("&", b, c))
    assert _value("a * b & c // d") == s.Binary("&", s.Binary("*", a, b), s.Binary("//", c, d))
    assert _value("-a ** b") == s.Negative(s.Binary("**", a, b))
    assert _value("-a * b") == s.Binary("*", s.Negative(a), b)
    assert _value("not a < b and c or d") == s.Logical("or", (s.Logical("and", (s.Negation(s.Comparison(("<",), (a, b))), c)), d))
    assert _value("a - b < c <= d") == s.Comparison(("<", "<="), (s.Binary("-", a, b), c, d))
    assert _value("union p in 0..3 a | b") == s.Binary("|", s.UnionOver(s.Name("p"), s.Integer(0), s.Integer(3), a), b)


@pytest.mark.parametrize(
    "word",
    ["lambda", "class", "def", "global", "in", "layers", "rest", "within", "at", "per", "kv", "all", "reach", "density", "repeat", "N"],
)
def test_words_of_python_and_of_the_language_are_names(word: str) -> None:
    text = f"pattern {word}({word} = 1) {{ {word} = attend(tokens, {word} | f({word} = {word})) output {word} assert ({word}) }}"
    (pattern,) = parse(text).declarations
    assert isinstance(pattern, s.PatternDeclaration)
    assert pattern.name == s.Name(word)
    assert pattern.body[2] == s.AssertRelation(s.Name(word))


def test_a_call_s_parenthesis_touches_its_name() -> None:
    (model,) = parse("model m { layers 4 { 0: a\n (1 + 1): b } }").declarations
    assert isinstance(model, s.ModelDeclaration)
    assert isinstance(model.body[0], s.LayersStatement)
    assert len(model.body[0].schedule) == 2


def test_the_grammar_has_no_conflict(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger=lark.logger.name):
        lark.Lark(grammar().source_grammar, parser="lalr", lexer="basic", debug=True)
    assert "conflict" not in caplog.text.lower()


def test_spans_are_offsets_lines_and_columns() -> None:
    text = "# é\r\npattern p {\r\n  output f(a,\r\n    (b | c))\r\n}\r\n"
    (pattern,) = parse(text.encode()).declarations
    assert isinstance(pattern, s.PatternDeclaration)
    output = pattern.body[0]
    assert isinstance(output, s.OutputStatement)
    assert isinstance(output.value, s.Call)
    span = output.value.arguments[1].span
    assert (text[span.start : span.end], span.line, span.column) == ("(b | c)", 4, 5)
    assert text[pattern.span.start : pattern.span.end].endswith("}")
    assert pattern.comments.above == ("é",)


def test_comments_find_their_statements() -> None:
    text = """# file
# pattern
pattern p( # head
  w = 5) { # first
  a = f(w, # inside
        3) # beside
  # above output
  output a
  # closing
} # brace
# end"""
    tree = parse(text)
    (pattern,) = tree.declarations
    assert isinstance(pattern, s.PatternDeclaration)
    assert pattern.comments == s.Comments(("file", "pattern", "head"), "brace")
    assert [each.comments for each in pattern.body] == [s.Comments(("first", "inside"), "beside"), s.Comments(("above output",))]
    assert pattern.closing == ("closing",)
    assert tree.closing == ("end",)


def _nested(depth: int) -> str:
    return "relation r = " + "(" * depth + "a" + ")" * depth


_FITTING = [
    ("size", "relation r = a #".ljust(64 * 1024, "x")),
    ("nesting", _nested(64)),
    ("name", f"relation {'n' * 63} = a"),
    ("digits", f"relation r = f({'9' * 19})"),
    ("terms", f"relation r = f({', '.join('a' * 999)})"),
    ("chain", "relation r = " + " | ".join("a" * 201)),
    ("minus", "relation r = f(" + "-" * 64 + "a)"),
    ("tab and UTF-8 comment", "relation r =\ta # größer"),
    ("CRLF", "relation r =\r\n a # c\r\n"),
]


@pytest.mark.parametrize(("what", "text"), _FITTING, ids=[each[0] for each in _FITTING])
def test_what_just_fits(what: str, text: str) -> None:
    assert len(parse(text).declarations) == 1, what


_REFUSED: list[tuple[str, str | bytes]] = [
    ("spec-too-large", "relation r = a #".ljust(64 * 1024 + 1, "x")),
    ("spec-too-large", b"relation r = a #".ljust(64 * 1024 + 1, b"x")),
    ("spec-too-large", "relation r = a #".ljust(40_000, "é")),
    ("spec-too-large", "x" * 10_000_000),
    ("nul-character", "relation r = a\0"),
    ("nul-character", b"relation r = a # \0"),
    ("control-character", "relation r = \x1b[31ma"),
    ("control-character", "relation r = a # \x85"),
    ("control-character", "relation r = a # \u2028"),
    ("bidirectional-control", "relation r = a # \u202e"),
    ("invalid-utf8", b"relation r = a # \xff\xfe"),
    ("invalid-utf8", "relation r = a # \ud800"),
    ("byte-order-mark", "\ufeffrelation r = a"),
    ("byte-order-mark", b"\xef\xbb\xbfrelation r = a"),
    ("carriage-return", "relation r = a\rrelation q = b"),
    ("non-ascii", "relation größe = a"),
    ("non-ascii", 'use "größe.nsa"'),
    ("nesting-too-deep", _nested(65)),
    ("nesting-too-deep", _nested(30_000)),
    ("nesting-too-deep", "relation r = " + "{ i, j : " * 65),
    ("nesting-too-deep", "relation r = f(" + "-" * 65 + "a)"),
    ("nesting-too-deep", "relation r = { i, j : " + "not " * 10_000),
    ("number-too-long", f"relation r = f({'9' * 20})"),
    ("number-too-long", f"relation r = f({'9' * 5_000})"),
    ("number-too-long", f"relation r = f(0.{'9' * 5_000})"),
    ("name-too-long", f"relation {'n' * 64} = a"),
    ("expression-too-long", f"relation r = f({', '.join('a' * 1_001)})"),
    ("expression-too-long", f"pattern p {{ output f({', '.join('a' * 1_001)}) }}"),
    ("chain-too-long", "relation r = " + " | ".join("a" * 1_001)),
    ("chain-too-long", "relation r = " + "union p in 0..2 " * 1_000 + "a"),
    ("empty-spec", ""),
    ("empty-spec", b" \n# nothing but a comment\n"),
]


@pytest.mark.parametrize(("code", "text"), _REFUSED, ids=[f"{each[0]}-{k}" for k, each in enumerate(_REFUSED)])
def test_what_is_refused_before_parsing(code: str, text: str | bytes) -> None:
    began = time.perf_counter()
    errors = _errors(text)
    assert time.perf_counter() - began < 1.0
    assert code in [each.code for each in errors]
    assert all(each.help and each.primary.span.line >= 1 for each in errors)


_HOSTILE = {
    "names": "a " * 30_000,
    "braces": "}" * 60_000,
    "outputs": "output " * 9_000,
    "operators": "pattern p { " + "a = b & \n" * 7_000,
    "uses": "use " * 16_000,
    "stray": "?" * 60_000,
    "long line": "relation r = f(" + "a, " * 900 + "b c)",
}


@pytest.mark.parametrize("text", _HOSTILE.values(), ids=_HOSTILE)
def test_hostile_text_is_answered_in_time(text: str) -> None:
    grammar()
    began = time.process_time()
    assert 1 <= len(_errors(text)) <= 20
    assert time.process_time() - began < 1.5


def test_many_declarations_are_parsed_in_time() -> None:
    grammar()
    began = time.process_time()
    assert len(parse('use "a"\n' * 8_000).declarations) == 8_000
    assert time.process_time() - began < 2.5


def test_two_refusals_are_reported_at_once() -> None:
    assert _codes("\ufeffrelation r = a\x01") == ["byte-order-mark", "control-character"]
    assert _codes(f"relation r = f({'9' * 20})\nrelation q = f(1 / 2)") == ["number-too-long", "single-slash"]


def test_importing_the_parser_does_not_import_lark() -> None:
    code = "import sys, nsa_dsl.parser; sys.exit('lark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
