"""Text to tokens, by the terminals of grammar/nsa.lark; comments are set aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from lark import Lark, Token

from nsa_dsl.builder import Builder
from nsa_dsl.diagnostics import Span

_MISTAKEN = ("SLASH", "BANG", "AND_AND", "BAR_BAR", "SEMICOLON", "LBRACKET", "RBRACKET", "MALFORMED_NUMBER", "UNCLOSED_STRING")
MISTAKEN = frozenset((*_MISTAKEN, "NON_ASCII", "STRAY"))
"""Terminals that no rule uses: text that only a mistake can produce."""


class LocatedToken(Token):
    """A token that knows its span."""

    __slots__ = ("span",)
    span: Span


@dataclass(frozen=True, slots=True)
class Comment:
    """`# text`: span covers the mark and the text; own_line: nothing but blanks stands before it on its line."""

    text: str
    span: Span
    own_line: bool


class _KeepAll:
    """Tells lark to keep the terminals that no rule mentions."""

    always_accept = ("BLANK", "COMMENT", *sorted(MISTAKEN))

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        return stream


@cache
def grammar() -> Lark:
    """The LALR parser of one declaration, built once a process."""
    text = (files("nsa_dsl") / "grammar" / "nsa.lark").read_text(encoding="utf-8")
    return Lark(
        text,
        parser="lalr",
        lexer="basic",
        keep_all_tokens=True,
        maybe_placeholders=False,
        transformer=Builder(),
        postlex=_KeepAll(),
    )


def tokenize(text: str, name: str) -> tuple[list[LocatedToken], list[Comment]]:
    """Every token and every comment of `text`, in order; `name` goes into the spans. Never fails: see MISTAKEN."""
    tokens: list[LocatedToken] = []
    comments: list[Comment] = []
    last_line = 0
    machine: Any = grammar().parse_interactive(text)
    for token in machine.lexer_thread.lex(machine.parser_state):
        if token.type == "BLANK":
            continue
        start, line, column = token.start_pos or 0, token.line or 1, token.column or 1
        if token.type == "COMMENT":
            shown = token.rstrip("\r")
            comments.append(Comment(shown[1:].strip(), Span(name, start, start + len(shown), line, column), line != last_line))
            continue
        located = LocatedToken(token.type, str(token), start, line, column, token.end_line, token.end_column, token.end_pos)
        located.span = Span(name, start, start + len(token), line, column)
        tokens.append(located)
        last_line = token.end_line or line
    return tokens, comments


def end_token(text: str, name: str, after: LocatedToken) -> LocatedToken:
    """The end of a declaration, one column after its last token, so that `something is missing` can point there."""
    end = after.span.start + len(after)
    line = text.count("\n", 0, end) + 1
    token = LocatedToken("$END", "")
    token.span = Span(name, end, end, line, end - (text.rfind("\n", 0, end) + 1) + 1)
    return token
