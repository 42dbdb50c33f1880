"""`nsa fmt`: specs in the one layout that the printer gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nsa_dsl.cli.inputs import Files
from nsa_dsl.cli.outcome import for_each_file, write_whole


def fmt(files: Files, check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a file would change.")] = False) -> None:
    """Format specs in place. Comments stay. A file that is refused is left as it is."""
    from nsa_dsl.loader import read_spec
    from nsa_dsl.parser import parse
    from nsa_dsl.printer import format_spec

    def format_file(file: Path) -> bool:
        before = read_spec(file)
        after = format_spec(parse(before, str(file)))
        if after.encode() == before:
            return True
        if check:
            typer.echo(f"would format {file}")
            return False
        write_whole(file, after)
        typer.echo(f"formatted {file}")
        return True

    for_each_file(files, format_file)
