"""Syntax tree to text, in one canonical layout: parse(format_spec(tree)) == tree, and comments stay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import assert_never

from nsa_dsl import syntax as s
from nsa_dsl.layout import BREAK, CLOSE, OPEN, Piece, fill, flat

WIDTH = 100
INDENT = 4

_OR, _AND, _NOT, _COMPARISON, _SUM, _MEET, _PRODUCT, _UNARY, _POWER, _ATOM = range(10)
_LEVELS: dict[s.BinaryOperator, int] = {
    "+": _SUM, "-": _SUM, "|": _SUM, "&": _MEET, "*": _PRODUCT, "//": _PRODUCT, "%": _PRODUCT, "**": _POWER,
}  # fmt: skip


def format_spec(tree: s.SpecFile) -> str:
    """The whole file, lines of at most WIDTH columns where the text allows it, ending in a line feed."""
    parts = [_declaration(each) for each in tree.declarations]
    lines: list[str] = list(parts[0]) if parts else []
    for (before, after), (left, right) in zip(pairwise(tree.declarations), pairwise(parts), strict=True):
        together = type(before) is type(after) and len(left) == len(right) == 1
        lines.extend(right if together else ["", *right])
    if tree.closing:
        lines.extend(["", *_comment_lines(tree.closing)] if lines else _comment_lines(tree.closing))
    return "\n".join(lines) + "\n"


def print_expression(expression: s.Expression) -> str:
    """The expression on one line, with no parentheses that its meaning does not need."""
    return flat(_expression(expression, _OR))


def _expression(node: s.Expression, level: int) -> list[Piece]:
    """The pieces of `node` where the grammar takes nothing looser than `level`."""
    own = _level(node)
    if own < level:
        return _bracketed("(", _expression(node, _OR), ")")
    match node:
        case s.Integer(value):
            return [_integer(value)]
        case s.Real(text) | s.Name(text):
            return [text]
        case s.Call(name, arguments):
            return _bracketed(f"{name}(", _separated(_argument(each) for each in arguments), ")")
        case s.Negative(operand):
            return ["-", *_expression(operand, own)]
        case s.Negation(operand):
            return ["not ", *_expression(operand, own)]
        case s.Binary("**", left, right):
            return [*_expression(left, _ATOM), " ** ", *_expression(right, _ATOM)]
        case s.Binary(operator, left, right):
            return _grouped([*_left(left, own), BREAK, f"{operator} ", *_expression(right, own + 1)])
        case s.Comparison(operators, operands):
            return _grouped(_joined(operators, [_expression(each, _SUM) for each in operands]))
        case s.Logical(operator, operands):
            return _grouped(_joined([operator] * (len(operands) - 1), [_expression(each, own + 1) for each in operands]))
        case s.SetBuilder(variables, condition):
            return ["{ ", OPEN, ", ".join(each.text for each in variables), " :", BREAK, *_expression(condition, _OR), CLOSE, " }"]
        case s.UnionOver(variable, low, high, body):
            bounds = [*_expression(low, _SUM), "..", *_expression(high, _SUM)]
            return _grouped(["union ", variable.text, " in ", *bounds, BREAK, *_expression(body, _ATOM)])
        case _:
            assert_never(node)


def _level(node: s.Expression) -> int:
    match node:
        case s.Logical(operator):
            return _OR if operator == "or" else _AND
        case s.Negation():
            return _NOT
        case s.Comparison():
            return _COMPARISON
        case s.Binary(operator):
            return _LEVELS[operator]
        case s.Negative():
            return _UNARY
        case s.Integer() | s.Real() | s.Name() | s.Call() | s.SetBuilder() | s.UnionOver():
            return _ATOM
        case _:
            assert_never(node)


def _left(node: s.Expression, level: int) -> list[Piece]:
    """A left operand: one of the same level goes on with its parent's line breaks, as one chain."""
    pieces = _expression(node, level)
    return pieces[1:-1] if isinstance(node, s.Binary) and _level(node) == level else pieces


def _integer(value: int) -> str:
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)


def _argument(argument: s.Argument) -> list[Piece]:
    value = _expression(argument.value, _OR)
    return value if argument.name is None else [f"{argument.name} = ", *value]


def _grouped(pieces: list[Piece]) -> list[Piece]:
    return [OPEN, *pieces, CLOSE]


def _bracketed(opening: str, pieces: list[Piece], closing: str) -> list[Piece]:
    return [opening, OPEN, *pieces, CLOSE, closing]


def _separated(items: Iterable[list[Piece]]) -> list[Piece]:
    """Items with commas and, after each comma, a place to break the line."""
    pieces: list[Piece] = []
    for item in items:
        pieces.extend([",", BREAK] if pieces else [])
        pieces.extend(_grouped(item))
    return pieces


def _joined(operators: Sequence[str], operands: Sequence[list[Piece]]) -> list[Piece]:
    pieces = list(operands[0])
    for operator, operand in zip(operators, operands[1:], strict=True):
        pieces.extend([BREAK, f"{operator} ", *operand])
    return pieces


def _declaration(node: s.Declaration) -> list[str]:
    match node:
        case s.Use(path):
            return _commented([f'use "{path}"'], node.comments, 0)
        case s.RelationDeclaration(name, parameters, body):
            pieces = ["relation ", *_heading(name, parameters), " = ", OPEN, *_expression(body, _OR), CLOSE]
            return _commented(fill(pieces, 0, WIDTH), node.comments, 0)
        case s.PatternDeclaration(name, parameters, body):
            width = max((len(each.name.text) for each in body if isinstance(each, s.Binding)), default=0)
            statements = [_pattern_statement(each, width if len(body) > 1 else 0) for each in body]
            gap = next((k for k, each in enumerate(body) if k and _is_assertion(each) and not _is_assertion(body[k - 1])), None)
            head: list[Piece] = ["pattern ", *_heading(name, parameters)]
            return _block(head, body, statements, node.comments, node.closing, 0, gap)
        case s.ModelDeclaration(name, parameters, body):
            parts = [_layers(each) if isinstance(each, s.LayersStatement) else _assertion(each) for each in body]
            return _block(["model ", *_heading(name, parameters)], body, parts, node.comments, node.closing, 0, None)
        case _:
            assert_never(node)


def _heading(name: s.Name, parameters: Sequence[s.Parameter]) -> list[Piece]:
    if not parameters:
        return [name.text]
    items = [[each.name.text, *([" = ", *_expression(each.default, _OR)] if each.default is not None else [])] for each in parameters]
    return _bracketed(f"{name.text}(", _separated(items), ")")


def _is_assertion(node: s.PatternStatement) -> bool:
    return isinstance(node, s.AssertRelation | s.AssertReach | s.AssertBound)


def _pattern_statement(node: s.PatternStatement, width: int) -> list[str]:
    """width: of the longest name bound in the pattern, so that the equals signs stand in one column."""
    match node:
        case s.Binding(name, value):
            return _statement([f"{name.text:<{width}} = ", OPEN, *_expression(value, _OR), CLOSE], node.comments)
        case s.OutputStatement(value):
            return _statement(["output ", *_expression(value, _OR)], node.comments)
        case s.KvPerBranch():
            return _statement(["kv per branch"], node.comments)
        case s.AllowLookahead():
            return _statement(["allow lookahead"], node.comments)
        case s.AssertRelation() | s.AssertReach() | s.AssertBound():
            return _assertion(node)
        case _:
            assert_never(node)


def _assertion(node: s.Assertion) -> list[str]:
    match node:
        case s.AssertRelation(relation):
            pieces = _expression(relation, _SUM)
            # `assert reach` is one word to the parser, so a relation of that name needs parentheses here.
            shielded = _shield(pieces) if re.match(r"reach\b", flat(pieces)) else pieces
            return _statement(["assert ", *shielded], node.comments)
        case s.AssertReach(relation, within):
            return _statement(["assert reach ", *_expression(relation, _SUM), " within ", *_expression(within, _SUM)], node.comments)
        case s.AssertBound(quantity, bound, at):
            pieces = [f"assert {quantity} <= ", *_expression(bound, _SUM), " at ", *_expression(at, _SUM)]
            return _statement(pieces, node.comments)
        case _:
            assert_never(node)


def _shield(pieces: list[Piece]) -> list[Piece]:
    return _bracketed("(", pieces, ")")


def _layers(node: s.LayersStatement) -> list[str]:
    rules = [_schedule(each) for each in node.schedule]
    head = ["layers ", *_expression(node.count, _SUM)]
    return _block(head, node.schedule, rules, node.comments, node.closing, INDENT, None)


def _schedule(node: s.Repeat | s.LayerRule) -> list[str]:
    match node:
        case s.Repeat(items):
            return _statement(["repeat ", OPEN, *_separated(map(_item, items)), CLOSE], node.comments, 2 * INDENT)
        case s.LayerRule(low, high, item):
            bounds = " .. ".join(_bound(each) for each in (low, high) if each is not None).replace(" .. ", "..")
            return _statement([f"{bounds or 'rest'}: ", *_item(item)], node.comments, 2 * INDENT)
        case _:
            assert_never(node)


def _bound(node: s.Expression) -> str:
    """`rest` before a colon begins a rule of its own, so an expression that ends in that name needs parentheses."""
    text = flat(_expression(node, _SUM))
    return f"({text})" if re.search(r"\brest$", text) else text


def _item(item: s.LayerItem) -> list[Piece]:
    times = [" * ", *_expression(item.times, _UNARY)] if item.times is not None else []
    reuse = [f" reuse({', '.join(each.text for each in item.reuse)})"] if item.reuse else []
    return [*_expression(item.pattern, _ATOM), *times, *reuse]


def _statement(pieces: Sequence[Piece], comments: s.Comments, indent: int = INDENT) -> list[str]:
    return _commented(fill(pieces, indent, WIDTH), comments, indent)


def _commented(lines: Sequence[str], comments: s.Comments, indent: int) -> list[str]:
    """Statement lines, which are indented already, with their comments."""
    margin = " " * indent
    last = lines[-1] if comments.beside is None else f"{lines[-1]}  # {comments.beside}".rstrip()
    return [*(margin + each for each in _comment_lines(comments.above)), *lines[:-1], last]


def _comment_lines(texts: Sequence[str]) -> list[str]:
    return [f"# {each}".rstrip() for each in texts]


def _block(
    head: Sequence[Piece],
    body: Sequence[s.PatternStatement | s.LayersStatement | s.Repeat | s.LayerRule],
    statements: Sequence[list[str]],
    comments: s.Comments,
    closing: Sequence[str],
    indent: int,
    gap: int | None,
) -> list[str]:
    """`head { ... }`: on one line when it holds at most one short statement without comments. gap: before which statement
    a line stays empty."""
    margin = " " * indent
    bare = not closing and all(each.comments == s.NO_COMMENTS for each in body)
    inner = statements[0][0].strip() if statements and len(statements[0]) == 1 else ""
    line = margin + flat(head) + (f" {{ {inner} }}" if inner else " {}")
    if bare and (not statements or (len(statements) == 1 and inner and len(line) <= WIDTH)):
        return _commented([line], comments, indent)
    lines = [*fill([*head, " {"], indent, WIDTH)]
    for position, each in enumerate(statements):
        lines.extend(["", *each] if position == gap else each)
    lines.extend(f"{margin}{' ' * INDENT}{each}" for each in _comment_lines(closing))
    return _commented([*lines, f"{margin}}}"], comments, indent)
