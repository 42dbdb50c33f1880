"""One declaration's tokens through the LALR machine; after a mistake, on with the next statement."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import pairwise
from typing import Any, cast

from lark import Token, UnexpectedToken
from lark.parsers.lalr_interactive_parser import InteractiveParser

from nsa_dsl.diagnostics import Diagnostic
from nsa_dsl.limits import begins_statement
from nsa_dsl.mistakes import Situation, describe
from nsa_dsl.syntax import Declaration
from nsa_dsl.tokens import LocatedToken, end_token, grammar

MAX_ERRORS = 20
"""How many diagnostics one text gets: more would hide the first."""


def parse_declaration(tokens: Sequence[LocatedToken], text: str) -> tuple[Declaration | None, list[Diagnostic]]:
    """The declaration, or None and one diagnostic for each wrong statement.

    After an error nodes are built for nothing: a checkpoint shares lists with the machine that went wrong, so what a
    resumed machine builds is no tree, but its states are right.
    """
    fed = [*tokens, end_token(text, tokens[0].span.source, tokens[-1])]
    starts = _statement_starts(fed)
    ahead = frozenset(starts)
    errors: list[Diagnostic] = []
    machine = grammar().parse_interactive("")
    taken: list[LocatedToken] = []
    checkpoint: tuple[InteractiveParser, int, int] | None = None
    index = 0
    declaration: Declaration | None = None
    while index < len(fed):
        if index in ahead and _between_statements(machine):
            checkpoint = (_fork(machine), len(taken), index)
        try:
            declaration = machine.feed_token(fed[index])
        except UnexpectedToken:
            errors.append(describe(Situation.of(machine, taken, fed[index])))
            resume = next((each for each in starts if checkpoint and each >= index and each > checkpoint[2]), None)
            if checkpoint is None or resume is None or len(errors) >= MAX_ERRORS:
                break
            machine, kept, _ = checkpoint
            del taken[kept:]
            index = resume
            continue
        taken.append(fed[index])
        index += 1
    return (None if errors else declaration), errors


def _fork(machine: InteractiveParser) -> InteractiveParser:
    """A machine in the same state, which goes its own way; the nodes built so far are shared."""
    return cast(InteractiveParser, cast(Any, machine).copy(deepcopy_values=False))


def _between_statements(machine: InteractiveParser) -> bool:
    """Whether a statement may begin here: the machine would take `assert`, which nothing else begins with."""
    probe = _fork(machine)
    # Without callbacks: lark's reductions extend lists in place, and the copy shares its lists with the machine.
    probe.parser_state.parse_conf = copy(probe.parser_state.parse_conf)
    probe.parser_state.parse_conf.callbacks = {}
    try:
        probe.feed_token(Token("ASSERT", "assert"))
    except UnexpectedToken:
        return False
    return True


def _statement_starts(tokens: Sequence[LocatedToken]) -> list[int]:
    """Where the statements directly in the declaration's body begin, as far as brackets can be trusted.

    Two signs outweigh brackets, one of which may never have been closed: `output` and `assert` are reserved, and a word
    that begins a line in the column of the body's first statement is meant to begin a statement.
    """
    starts: list[int] = []
    depth = 0
    margin: int | None = None
    for index, (token, following) in enumerate(pairwise(tokens)):
        begins_line = index > 0 and token.span.line > tokens[index - 1].span.line
        if token.type in ("OUTPUT", "ASSERT", "ASSERT_REACH") or (begins_line and token.span.column == margin):
            depth = min(depth, 1)
        if depth == 1 and begins_statement(token, following):
            starts.append(index)
            margin = token.span.column if margin is None and begins_line else margin
        if token.type in ("LPAR", "LBRACE"):
            depth += 1
        elif token.type in ("RPAR", "RBRACE"):
            depth -= 1
    return starts
