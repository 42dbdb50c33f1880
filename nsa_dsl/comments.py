"""Comments to the statements that they belong to."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from nsa_dsl.syntax import (
    Comments,
    Declaration,
    LayerRule,
    LayersStatement,
    ModelDeclaration,
    PatternDeclaration,
    PatternStatement,
    Repeat,
    SpecFile,
)

if TYPE_CHECKING:
    from nsa_dsl.tokens import Comment

Statement = Declaration | PatternStatement | LayersStatement | Repeat | LayerRule
_Statement = TypeVar("_Statement", bound=Statement)


def attach(spec: SpecFile, comments: Sequence[Comment], text: str) -> SpecFile:
    """The same file with each comment at its statement.

    A comment on a statement's last line belongs beside it. Any other belongs above the statement that it stands in or
    before, or, where no statement follows, to the end of the block.
    """
    queue = deque(comments)
    declarations, closing = _attach_block(spec.declarations, queue, len(text), text)
    return replace(spec, declarations=declarations, closing=closing)


def _attach_block(
    statements: Sequence[_Statement], queue: deque[Comment], end: int, text: str
) -> tuple[tuple[_Statement, ...], tuple[str, ...]]:
    """The statements of one block with their comments, and those that stand before its end. Takes from the queue."""
    done = []
    for position, statement in enumerate(statements):
        above = _take(queue, statement.span.start)
        following = statements[position + 1].span.start if position + 1 < len(statements) else end
        inner, within = _attach_inside(statement, queue, text)
        beside = None
        if queue and _beside(queue[0], statement.span.end, following, text):
            beside = queue.popleft().text
        done.append(replace(inner, comments=Comments((*above, *within), beside)))
    return tuple(done), _take(queue, end)


def _attach_inside(statement: _Statement, queue: deque[Comment], text: str) -> tuple[_Statement, tuple[str, ...]]:
    """The statement with its inner block's comments, and those inside it that no block holds."""
    end = statement.span.end
    match statement:
        case PatternDeclaration() | ModelDeclaration():
            head = _take(queue, (statement.parameters[-1] if statement.parameters else statement.name).span.end)
            if isinstance(statement, PatternDeclaration):
                body, closing = _attach_block(statement.body, queue, end, text)
                return replace(statement, body=body, closing=closing), head
            parts, closing = _attach_block(statement.body, queue, end, text)
            return replace(statement, body=parts, closing=closing), head
        case LayersStatement():
            head = _take(queue, statement.count.span.end)
            schedule, closing = _attach_block(statement.schedule, queue, end, text)
            return replace(statement, schedule=schedule, closing=closing), head
        case _:
            return statement, _take(queue, end)


def _take(queue: deque[Comment], border: int) -> tuple[str, ...]:
    """The comments before the offset `border`, taken from the queue."""
    taken = []
    while queue and queue[0].span.start < border:
        taken.append(queue.popleft().text)
    return tuple(taken)


def _beside(comment: Comment, end: int, following: int, text: str) -> bool:
    """Whether nothing but blanks stands between the statement's end and the comment, on one line."""
    return comment.span.start < following and "\n" not in text[end : comment.span.start] and not text[end : comment.span.start].strip()
