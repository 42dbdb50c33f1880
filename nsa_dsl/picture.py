"""What a pattern looks like: for each branch, which tiles of queries x keys are seen whole, in part, by choice or never.

█ full     every query of the tile sees every key: no mask
▒ partial  some pairs are seen: masked pair by pair
○ chosen   seen only if the data chooses it
· empty    never seen, never loaded
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from nsa_dsl.choice_bounds import bounded
from nsa_dsl.enumeration import enumerate_tiles
from nsa_dsl.lift import slot_count, visible_slots
from nsa_dsl.pattern import Branch, Choice, Compress, Pattern
from nsa_dsl.relation import FULL as ALWAYS
from nsa_dsl.relation import Condition, SameDocument, Term, Var, evaluate, rewrite, symbols, walk
from nsa_dsl.tiles import tiling

FULL, PARTIAL, CHOSEN, EMPTY = "█", "▒", "○", "·"
LEGEND = f"{FULL} full   {PARTIAL} partial, masked   {CHOSEN} only if chosen   {EMPTY} never"


@dataclass(frozen=True, slots=True)
class Frame:
    """What part of which call is drawn. tokens: the sequence length; tile: queries, and tokens of keys, a cell stands for;
    head: the query head drawn, of `heads` on `kv_heads`."""

    tokens: int = 1024
    tile: int = 64
    head: int = 0
    heads: int = 16
    kv_heads: int = 1


def draw_pattern(pattern: Pattern, frame: Frame) -> str:
    """Every branch of the pattern, one below the other, and the legend."""
    choices = {each.name: each for branch in pattern.branches for each in branch.choices}
    drawn = [draw_branch(branch, choices, frame) for branch in pattern.branches]
    return "\n\n".join([*drawn, LEGEND])


def draw_branch(branch: Branch, choices: dict[str, Choice], frame: Frame) -> str:
    """A title line, then one line a query tile; keys run to the right. choices: all of the pattern's, by name."""
    cells = branch_cells(branch, choices, frame)
    count = Counter("".join(cells))
    seen = ", ".join(f"{count[mark]} {word}" for mark, word in ((FULL, "full"), (PARTIAL, "partial"), (CHOSEN, "chosen")) if count[mark])
    title = f"{branch.name}: {_axes(branch, frame)}; {seen or 'nothing'} of {count.total()} tiles"
    notes = []
    if "h" in symbols(branch.where):
        notes.append(f"  head {frame.head} of {frame.heads}; other heads see other keys")
    if any(isinstance(each, SameDocument) for each in walk(branch.where)):
        notes.append("  one document; borders between packed documents remove more")
    return "\n".join([title, *notes, *(f"  {''.join(2 * cell for cell in row)}" for row in cells)])


def branch_cells(branch: Branch, choices: dict[str, Choice], frame: Frame) -> list[str]:
    """One string a query tile, one character a key tile."""
    where = rewrite(branch.where, {}, {SameDocument(): ALWAYS})
    sure, possible = (bounded(where, choices, must=must) for must in (True, False))
    keys: Term = Var("N")
    columns = frame.tile
    if isinstance(branch.memory, Compress):
        sure, possible = (visible_slots(branch, each) for each in (sure, possible))
        columns, keys = _slots_a_cell(branch.memory, frame), slot_count(branch.memory)
    rows = (tile_kinds(each, columns, keys, frame) for each in (sure, possible))
    return ["".join(map(_mark, *pair)) for pair in zip(*rows, strict=True)]


def tile_kinds(relation: Condition, columns: int, keys: Term, frame: Frame) -> list[list[int]]:
    """For each query tile and each tile of `columns` keys: 0 for empty, 1 for partial, 2 for full.

    keys: the number of key positions. Costs as much at a million tokens as at a thousand, unless the relation is too hard for
    integer sets: then every pair is looked at.
    """
    shape = {"h": frame.head, "heads": frame.heads, "kv_heads": frame.kv_heads}
    tiles = tiling(relation, frame.tile, columns, keys=keys, most=1_000)
    if not tiles.exact:
        looked_at: list[list[int]] = enumerate_tiles(relation, frame.tile, columns, frame.tokens, **shape, keys=keys).tolist()
        return looked_at
    width = -(-max(0, evaluate(keys, {"N": frame.tokens})) // columns)
    kinds = [[0] * width for _ in range(-(-frame.tokens // frame.tile))]
    for tile, row in enumerate(kinds):
        place = {**shape, "N": frame.tokens, "tile": tile}
        for piece in tiles.pieces:
            if piece.guard is not None and not evaluate(piece.guard, place):
                continue
            for at in range(evaluate(piece.low, place), evaluate(piece.high, place), piece.step):
                if piece.inner is None or evaluate(piece.inner, {**place, "j": at}):
                    row[at] = 2 if piece.full else 1
    return kinds


def _mark(sure: int, possible: int) -> str:
    if sure:
        return FULL if sure == 2 else PARTIAL
    return CHOSEN if possible else EMPTY


def _slots_a_cell(memory: Compress, frame: Frame) -> int:
    return max(1, frame.tile // memory.stride)


def _axes(branch: Branch, frame: Frame) -> str:
    if isinstance(branch.memory, Compress):
        return f"{frame.tile} queries x {_slots_a_cell(branch.memory, frame)} slots of {branch.memory.name} a cell"
    return f"{frame.tile} queries x {frame.tile} keys a cell"
