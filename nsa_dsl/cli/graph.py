"""`nsa graph`: the block-dependency graph of a pattern, for other programs and for Graphviz."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nsa_dsl.cli.inputs import File, PatternName, Settings, the_pattern
from nsa_dsl.cli.outcome import for_each_file


class Format(StrEnum):
    """What to print the graph as."""

    dot = "dot"
    json = "json"


def graph(
    file: File,
    format: Annotated[Format, typer.Option("--format", "-f", help="dot: for Graphviz; json: every node and edge.")] = Format.dot,
    pattern: PatternName = None,
    settings: Settings = None,
    backward: Annotated[bool, typer.Option("--backward", help="With the transposed graph: the gradients of every input.")] = False,
) -> None:
    """Print the block-dependency graph of one pattern, as the kernels are made from it."""
    from nsa_dsl.export import to_dot, to_json
    from nsa_dsl.lower import lower
    from nsa_dsl.passes import run_passes
    from nsa_dsl.passes.differentiate import differentiate

    def print_graph(path: Path) -> bool:
        lowered = run_passes(lower(the_pattern(path, pattern, settings)))
        if backward:
            lowered = differentiate(lowered)
            lowered.verify()
        typer.echo(to_dot(lowered) if format is Format.dot else to_json(lowered), nl=False)
        return True

    for_each_file([file], print_graph)
