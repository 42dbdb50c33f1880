"""The printer: parse(print(tree)) == tree over random trees, comments kept, one canonical layout."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from itertools import product
from typing import Any, get_args

import pytest
from golden_files import check_golden
from hypothesis import HealthCheck, given, settings
from strategies_syntax import expressions, spec_files

from nsa_dsl import syntax as s
from nsa_dsl.diagnostics import SpecError
from nsa_dsl.parser import parse
from nsa_dsl.printer import WIDTH, format_spec, print_expression

_SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def _nodes(value: Any) -> list[Any]:
    """Every dataclass instance in a tree, spans aside."""
    if isinstance(value, tuple):
        return [node for each in value for node in _nodes(each)]
    if not is_dataclass(value) or type(value).__name__ == "Span":
        return []
    return [value, *(node for each in fields(value) for node in _nodes(getattr(value, each.name)))]


def _comments(tree: s.SpecFile) -> list[tuple[str, Any, Any]]:
    """(node kind, comments, closing comments) of every node that can have some, in order."""
    return [
        (type(node).__name__, getattr(node, "comments", None), getattr(node, "closing", None))
        for node in _nodes(tree)
        if hasattr(node, "comments") or hasattr(node, "closing")
    ]


def _relation(text: str) -> s.Expression:
    declaration = parse(f"relation r = {text}").declarations[0]
    assert isinstance(declaration, s.RelationDeclaration)
    return declaration.body


@_SETTINGS
@given(spec_files)
def test_a_printed_tree_parses_to_itself(tree: s.SpecFile) -> None:
    text = format_spec(tree)
    again = parse(text)
    assert again == tree
    assert _comments(again) == _comments(tree)
    assert format_spec(again) == text


@_SETTINGS
@given(expressions)
def test_a_printed_expression_has_no_parenthesis_too_many(expression: s.Expression) -> None:
    text = print_expression(expression)
    assert _relation(text) == expression
    for start, end in _parentheses(text):
        bare = f"{text[:start]} {text[start + 1 : end]} {text[end + 1 :]}"
        assert not _means(bare, expression), f"{text} says no more than {bare}"


def test_every_two_operators_group_as_printed() -> None:
    operators = get_args(s.BinaryOperator)
    a, b, c = map(s.Name, "abc")
    assert len(operators) == 8
    for outer, inner in product(operators, repeat=2):
        for tree in (s.Binary(outer, s.Binary(inner, a, b), c), s.Binary(outer, a, s.Binary(inner, b, c))):
            assert _relation(print_expression(tree)) == tree
    for operator in set(operators) - {"**"}:
        assert print_expression(s.Binary(operator, s.Binary(operator, a, b), c)) == f"a {operator} b {operator} c"


def _means(text: str, expression: s.Expression) -> bool:
    try:
        return _relation(text) == expression
    except SpecError:
        return False


def _parentheses(text: str) -> list[tuple[int, int]]:
    """(start, end) of each pair that groups, rather than calls."""
    stack: list[int] = []
    pairs = []
    for index, character in enumerate(text):
        if character == "(":
            stack.append(index)
        elif character == ")":
            start = stack.pop()
            if start == 0 or not (text[start - 1].isalnum() or text[start - 1] == "_"):
                pairs.append((start, index))
    return pairs


def test_the_strategy_reaches_every_kind_of_node() -> None:
    seen: set[str] = set()

    @settings(max_examples=400, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(spec_files)
    def collect(tree: s.SpecFile) -> None:
        seen.update(type(node).__name__ for node in _nodes(tree))

    collect()
    kinds = {name for name, value in vars(s).items() if isinstance(value, type) and is_dataclass(value) and value.__module__ == s.__name__}
    assert kinds <= seen
    assert {each.__name__ for each in get_args(s.Expression)} <= kinds


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("65_536", "64k"),
        ("1023", "1023"),
        ("1024", "1k"),
        ("((a | b)) | c", "a | b | c"),
        ("a | (b | c)", "a | (b | c)"),
        ("(a & b) | (c & d)", "a & b | c & d"),
        ("a & (b - c)", "a & (b - c)"),
        ("-(a + b) ** 2", "-(a + b) ** 2"),
        ("(-a) ** 2", "(-a) ** 2"),
        ("-(a ** 2)", "-a ** 2"),
        ("(2 ** p) ** q", "(2 ** p) ** q"),
        ("not (a and b)", "not (a and b)"),
        ("(a or b) and not (c == d)", "(a or b) and not c == d"),
        ("union p in 0..(n - 1) (f(p) | g)", "union p in 0..n - 1 (f(p) | g)"),
        ("{i,j:i-w<j<=i}", "{ i, j : i - w < j <= i }"),
        ("f( a,b = 1, )", "f(a, b = 1)"),
    ],
)
def test_expressions_print_canonically(written: str, printed: str) -> None:
    assert print_expression(_relation(written)) == printed


def test_layout() -> None:
    source = """
use "a.nsa" # beside a use
use "b.nsa"
relation near(w) = window(w)
relation far(w) = causal - window(w)
# above
pattern short { output attend(tokens, causal) } # after the brace
pattern long_one(block_size = 64, stride_between_blocks = 32, number_of_chosen_blocks = 16, window_width = 4k, sinks = 4) {
  # first
  kv per branch
  a = attend(compress(block = block_size, stride = stride_between_blocks, by = mean), causal, softcap = 30.0, sink = learned)
  longer = attend(tokens, causal & first(sinks) | window(window_width) & dilated(window_width, 4) | stride(128) & blocks(block_size))
  output gate(a, longer) # the end
  # inside, below
  assert causal assert density <= 0.25 at 64k
  # last
}
model m(deep = 48) { layers deep { 0..2: short 5: long_one(sinks = 8) # five
 rest: short * 2 reuse(a) } assert kv <= 2 * 64k at 128k
}
# bottom
"""
    text = format_spec(parse(source))
    check_golden("syntax/layout.nsa", text)
    assert max(map(len, text.splitlines())) <= WIDTH
