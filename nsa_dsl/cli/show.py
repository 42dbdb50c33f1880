"""`nsa show`: a picture of what each branch sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nsa_dsl.cli.inputs import File, PatternName, Settings, the_patterns
from nsa_dsl.cli.outcome import UserError, busy, for_each_file

MOST_CELLS = 128
"""The widest and highest picture, in tiles; a terminal is about as wide."""


def show(
    file: File,
    pattern: PatternName = None,
    settings: Settings = None,
    tokens: Annotated[int, typer.Option(min=1, help="The sequence length.")] = 1024,
    tile: Annotated[int, typer.Option(min=1, help="Queries, and tokens of keys, that one cell stands for.")] = 64,
    head: Annotated[int, typer.Option(min=0, help="The query head to draw.")] = 0,
    heads: Annotated[int, typer.Option(min=1, help="How many query heads there are.")] = 16,
) -> None:
    """Draw which tiles of queries x keys each branch sees, queries downwards, keys to the right."""
    from nsa_dsl.picture import Frame, draw_pattern

    def draw(path: Path) -> bool:
        if head >= heads:
            raise UserError(f"--head {head}: there are {heads} heads, counted from 0; use --heads {head + 1}")
        if -(-tokens // tile) > MOST_CELLS:
            raise UserError(f"--tokens {tokens} is {-(-tokens // tile)} tiles a side; use --tile {-(-tokens // MOST_CELLS)} or more")
        frame = Frame(tokens, tile, head, heads)
        pictures = []
        for each in the_patterns(path, pattern, settings):
            with busy(f"drawing {each.name}"):
                pictures.append(f"pattern {each.name}, {tokens} tokens\n\n{draw_pattern(each, frame)}")
        typer.echo("\n\n".join(pictures))
        return True

    for_each_file([file], draw)
