"""Arguments that several commands share, and how a command gets its patterns."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from nsa_dsl.cli.outcome import UserError

if TYPE_CHECKING:
    from nsa_dsl.pattern import Pattern

Files: TypeAlias = Annotated[list[Path], typer.Argument(help="Spec files (*.nsa).", metavar="FILES...", show_default=False)]
File: TypeAlias = Annotated[Path, typer.Argument(help="A spec file (*.nsa).", metavar="FILE", show_default=False)]
PatternName: TypeAlias = Annotated[
    str | None, typer.Option("--pattern", "-p", metavar="NAME", help="One pattern. Default: all in the file.", show_default=False)
]
Settings: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="NAME=VALUE", help="Bind a parameter; repeat for several.", show_default=False)
]


def the_patterns(file: Path, name: str | None, settings: list[str] | None) -> list[Pattern]:
    """The pattern of this name, or every pattern in the file, its parameters bound as asked. Raises SpecError, UserError."""
    from nsa_dsl.loader import load_spec

    spec = load_spec(file)
    bound = dict(map(_setting, settings or ()))
    names = spec.patterns if name is None else (name,)
    if not names:
        raise UserError(f"{file}: no pattern is declared in it")
    return [spec.pattern(each, **bound) for each in names]


def the_pattern(file: Path, name: str | None, settings: list[str] | None) -> Pattern:
    """Like `the_patterns`, for a command that takes one: the file's only pattern needs no name."""
    patterns = the_patterns(file, name, settings)
    if len(patterns) > 1:
        raise UserError(f"{file} declares {', '.join(each.name for each in patterns)}; choose one with --pattern")
    return patterns[0]


def _setting(text: str) -> tuple[str, int | float | str]:
    """`n=8`, `length=64k` as the language writes numbers, `by=mean`. What a parameter accepts is the spec's business."""
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise UserError(f"--set {text}: write NAME=VALUE")
    return name.strip(), _value(value.strip())


def _value(text: str) -> int | float | str:
    with suppress(ValueError):
        return int(text.removesuffix("k")) * (1024 if text.endswith("k") else 1)
    with suppress(ValueError):
        return float(text)
    return text
