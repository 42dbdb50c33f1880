"""`nsa check`: refuse what is wrong with a spec, prove or refute what it asserts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_dsl.cli.inputs import Files
from nsa_dsl.cli.outcome import busy, for_each_file
from nsa_dsl.diagnostics import SpecError

if TYPE_CHECKING:
    from nsa_dsl.pattern import Model, Pattern


def check(
    files: Files,
    heads: Annotated[int, typer.Option(min=1, help="Query heads, for densities of relations that differ by head.")] = 8,
    kv_heads: Annotated[int, typer.Option(min=1, help="KV heads, likewise.")] = 1,
) -> None:
    """Refuse specs that are wrong; prove or refute what they assert. A claim that data decides is neither: it stays open."""
    from nsa_dsl.loader import load_spec
    from nsa_dsl.prove import check_claims

    def holds(subject: Pattern | Model) -> bool:
        with busy(f"proving what {subject.name} asserts"):
            verdicts = check_claims(subject, heads=heads, kv_heads=kv_heads)
        for each in verdicts:
            typer.echo(f"    {each.status:<9}  {each.text}: {each.detail}")
        return all(each.status != "refuted" for each in verdicts)

    def check_file(file: Path) -> bool:
        spec = load_spec(file)
        typer.echo(file)
        everything: list[tuple[str, str, Callable[[str], Pattern | Model]]] = [
            *(("pattern", name, spec.pattern) for name in spec.patterns),
            *(("model", name, spec.model) for name in spec.models),
        ]
        held = True
        for kind, name, make in everything:
            try:
                subject = make(name)
            except SpecError as open_parameters:
                if {each.code for each in open_parameters.diagnostics} != {"missing-argument"}:
                    raise
                typer.echo(f"  {kind} {name}: {open_parameters.diagnostics[0].title}, so only its names and kinds are checked")
                continue
            typer.echo(f"  {kind} {name}{'' if subject.claims else ': asserts nothing'}")
            held = holds(subject) and held
        return held

    for_each_file(files, check_file)
