"""The `nsa` program: its commands, the options before them, and what an error becomes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from nsa_dsl.cli import bench, check, compile, cost, demo, fmt, graph, show, tune, verify
from nsa_dsl.cli.outcome import REFUSALS, REFUSED, explain
from nsa_dsl.version import VERSION

app = typer.Typer(
    name="nsa",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 all is well, 1 a check failed, 2 a spec or the command line was refused.",
)
COMMANDS = (
    check.check,
    fmt.fmt,
    show.show,
    graph.graph,
    compile.compile_,
    verify.verify,
    bench.bench,
    cost.cost,
    tune.tune,
    demo.demo,
)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nsa {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    """A compiler for sparse attention: specs say which keys each query sees."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `nsa` with these arguments (default: this process's). Always raises SystemExit."""
    try:
        app(args=arguments, prog_name="nsa")
    except REFUSALS as problem:
        typer.echo(explain(problem), err=True)
        sys.exit(REFUSED)
