"""Lines of bounded width from pieces of text with marks: where a line may break, and to which column it then returns."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import TypeAlias


class Mark(Enum):
    """BREAK: a blank, or a line break. OPEN, CLOSE: inside, a broken line goes on in the column where OPEN stood."""

    BREAK = auto()
    OPEN = auto()
    CLOSE = auto()


BREAK, OPEN, CLOSE = Mark.BREAK, Mark.OPEN, Mark.CLOSE
Piece: TypeAlias = str | Mark


def flat(pieces: Sequence[Piece]) -> str:
    """All pieces on one line."""
    return "".join(each if isinstance(each, str) else " " for each in pieces if isinstance(each, str) or each is BREAK)


def fill(pieces: Sequence[Piece], indent: int, width: int) -> list[str]:
    """The pieces on as few lines as a greedy fill needs, the first indented by `indent` columns.

    A line breaks where what follows, up to the next break as far out, does not fit here but fits on a line of its own;
    or where not even the part up to the next break of any kind fits here.
    """
    lines: list[str] = []
    line = " " * indent
    columns = [indent]
    for index, piece in enumerate(pieces):
        match piece:
            case Mark.OPEN:
                columns.append(len(line))
            case Mark.CLOSE:
                columns.pop()
            case Mark.BREAK:
                whole, part = _ahead(pieces, index + 1, width)
                fits_here = len(line) + 1 + whole <= width
                fits_alone = columns[-1] + whole <= width
                if fits_here or (not fits_alone and len(line) + 1 + part <= width):
                    line += " "
                else:
                    lines.append(line)
                    line = " " * columns[-1]
            case str():
                line += piece
    return [*lines, line]


def _ahead(pieces: Sequence[Piece], start: int, width: int) -> tuple[int, int]:
    """Columns from `start` up to the next break that is as far out, and up to the next break; neither is counted past
    `width`."""
    depth = whole = 0
    part: int | None = None
    for piece in pieces[start : start + 8 * width]:
        if piece is OPEN:
            depth += 1
        elif piece is CLOSE:
            depth -= 1
        elif isinstance(piece, str):
            whole += len(piece)
        else:
            part = whole if part is None else part
            if depth <= 0:
                break
            whole += 1
        if whole > width:
            break
    return whole, whole if part is None else part
