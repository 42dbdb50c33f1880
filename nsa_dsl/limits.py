"""What a spec may not be, checked before it is parsed: bytes, characters, sizes. Each refusal is a located diagnostic."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nsa_dsl.diagnostics import Diagnostic, Label, Span

if TYPE_CHECKING:
    from nsa_dsl.tokens import LocatedToken

MAX_BYTES = 64 * 1024
MAX_NESTING = 64
MAX_DIGITS = 19
MAX_REAL_LENGTH = 40
MAX_NAME = 63
MAX_TERMS = 1_000
MAX_CHAIN = 200
"""Operators on the way from an expression to its innermost operand: what keeps every later recursion far from its limit."""

_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_OPENING = frozenset(("LPAR", "LBRACE"))
_CLOSING = frozenset(("RPAR", "RBRACE"))
_OPERANDS = frozenset(("INTEGER", "REAL", "NAME", "CALLED"))
_CHAINING = frozenset(("PLUS", "MINUS", "BAR", "AMPERSAND", "STAR", "SLASH_SLASH", "PERCENT", "STAR_STAR", "NOT", "UNION"))
_STARTING = frozenset(("EQUAL", "OUTPUT", "ASSERT", "ASSERT_REACH", "LAYERS"))
_COMPARING = frozenset(("LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "EQUAL_EQUAL", "NOT_EQUAL"))
_RESTARTING = _STARTING | _COMPARING | frozenset(("COMMA", "COLON", "AND", "OR"))


def place(text: str, name: str, start: int, end: int) -> Span:
    """The span of text[start:end]."""
    return Span(name, start, end, text.count("\n", 0, start) + 1, start - (text.rfind("\n", 0, start) + 1) + 1)


def decode(source: str | bytes, name: str) -> tuple[str, list[Diagnostic]]:
    """The text of `source`, with the first thing that makes it no text at all, if any: then nothing else is looked at."""
    size = len(source) if isinstance(source, bytes) or len(source) > MAX_BYTES else len(source.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        unit = "bytes" if isinstance(source, bytes) else "bytes or more"
        return "", [
            Diagnostic(
                "spec-too-large",
                f"a spec has at most 64 KiB ({MAX_BYTES:,} bytes); this one has {size:,} {unit}",
                Label(Span(name, 0, 0, 1, 1)),
                help=('split it into several files and join them with `use "other.nsa"`',),
            )
        ]
    if isinstance(source, str):
        text = source
    else:
        try:
            text = source.decode("utf-8")
        except UnicodeDecodeError as error:
            good = source[: error.start].decode("utf-8")
            text = good + source[error.start :].decode("utf-8", "replace")
            label = Label(place(text, name, len(good), len(good) + 1), f"byte 0x{source[error.start]:02x}")
            return text, [Diagnostic("invalid-utf8", "a spec is UTF-8 text", label, help=("save the file in UTF-8",))]
    return text, _check_characters(text, name)


def _check_characters(text: str, name: str) -> list[Diagnostic]:
    """The first character of each unacceptable kind."""
    found: dict[str, Diagnostic] = {}
    for match in re.finditer(r"[^\t\n -~]", text):
        character, start = match.group(), match.start()
        refusal = _refuse(character, start, text)
        if refusal is not None and refusal[0] not in found:
            code, title, help_text = refusal
            found[code] = Diagnostic(code, title, Label(place(text, name, start, start + 1), f"U+{ord(character):04X}"), help=(help_text,))
    return list(found.values())


def _refuse(character: str, start: int, text: str) -> tuple[str, str, str] | None:
    """(code, title, help) for a character that may not stand even in a comment, else None."""
    category = unicodedata.category(character)
    if character == "\0":
        return "nul-character", "a NUL character in a spec", "a spec is plain text: is this another kind of file?"
    if character == "\ufeff":
        return "byte-order-mark", "a byte order mark in a spec", "save the file as UTF-8 without a byte order mark"
    if character == "\r":
        lone = text[start + 1 : start + 2] != "\n"
        return ("carriage-return", "a carriage return without a line feed", "end lines with a line feed") if lone else None
    if category == "Cs":
        return "invalid-utf8", "half of a surrogate pair is no character", "save the file in UTF-8"
    if category in ("Cc", "Zl", "Zp"):
        return "control-character", "a control character in a spec", "remove it; only tabs and line feeds are allowed"
    if character in _BIDIRECTIONAL:
        return "bidirectional-control", "an invisible character that reorders text", "remove it: a spec must read as it means"
    return None


def check_tokens(tokens: Sequence[LocatedToken]) -> list[Diagnostic]:
    """Sizes of names, numbers and expressions, and the depth of brackets. tokens: one declaration's."""
    return [*_check_words(tokens), *(_check_nesting(tokens) or _check_expressions(tokens))]


def _check_words(tokens: Sequence[LocatedToken]) -> list[Diagnostic]:
    errors = []
    for token in tokens:
        if token.type in ("NAME", "CALLED") and len(token) > MAX_NAME:
            title = f"a name has at most {MAX_NAME} characters; this one has {len(token):,}"
            errors.append(Diagnostic("name-too-long", title, Label(token.span), help=("shorten it",)))
        elif token.type in ("INTEGER", "MALFORMED_NUMBER") and sum(map(str.isdigit, token)) > MAX_DIGITS:
            title = f"an integer has at most {MAX_DIGITS} digits; this one has {sum(map(str.isdigit, token)):,}"
            errors.append(Diagnostic("number-too-long", title, Label(token.span), help=("no length, count or size needs more",)))
        elif token.type == "STRING" and not token.isascii():
            errors.append(Diagnostic("non-ascii", "a path is ASCII", Label(token.span), help=("rename the file",)))
        elif token.type == "REAL" and len(token) > MAX_REAL_LENGTH:
            title = f"a number has at most {MAX_REAL_LENGTH} characters; this one has {len(token):,}"
            errors.append(Diagnostic("number-too-long", title, Label(token.span), help=("17 digits say everything a float can hold",)))
    return errors


def _check_nesting(tokens: Sequence[LocatedToken]) -> list[Diagnostic]:
    """Brackets, and runs of prefix operators, which nest as well."""
    depth = 0
    run = 0
    for token in tokens:
        run = run + 1 if token.type in ("MINUS", "NOT", "UNION") else 0
        if token.type in _OPENING:
            depth += 1
        elif token.type in _CLOSING:
            depth = max(0, depth - 1)
        if max(depth, run) > MAX_NESTING:
            help_text = "give an inner part a name of its own: a binding or a relation"
            title = f"brackets and prefix operators nest at most {MAX_NESTING} deep"
            return [Diagnostic("nesting-too-deep", title, Label(token.span), help=(help_text,))]
    return []


def _check_expressions(tokens: Sequence[LocatedToken]) -> list[Diagnostic]:
    """At most MAX_TERMS operands a statement, and at most MAX_CHAIN operators above one operand."""
    home = 1 if tokens[0].type == "RELATION" else 2
    terms = 0
    chains = [0]
    for token in tokens:
        if token.type in _STARTING and len(chains) == home:
            terms = 0
        if token.type in _OPERANDS:
            terms += 1
        if token.type in _OPENING:
            chains.append(0)
        elif token.type in _CLOSING and len(chains) > 1:
            chains.pop()
        elif token.type in _RESTARTING:
            chains[-1] = 0
        elif token.type in _CHAINING:
            chains[-1] += 1
        if terms > MAX_TERMS:
            title = f"one expression has at most {MAX_TERMS:,} terms"
            help_text = "split it into several bindings or relations, or write `union p in a..b R`"
            return [Diagnostic("expression-too-long", title, Label(token.span), help=(help_text,))]
        if sum(chains) > MAX_CHAIN:
            title = f"more than {MAX_CHAIN} operators in one chain"
            help_text = "give parts of it names of their own, or write `union p in a..b R`"
            return [Diagnostic("chain-too-long", title, Label(token.span), help=(help_text,))]
    return []


def begins_statement(token: LocatedToken, following: LocatedToken | None) -> bool:
    """Whether `token` begins a statement of a pattern or a model, when it stands directly in its body."""
    if token.type in ("OUTPUT", "ASSERT", "ASSERT_REACH", "LAYERS"):
        return True
    kind = following.type if following is not None else ""
    return kind == "EQUAL" or (token.type, kind) in (("KV", "PER"), ("ALLOW", "LOOKAHEAD"))
