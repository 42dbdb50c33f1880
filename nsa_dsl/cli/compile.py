"""`nsa compile`: kernels as Python modules that need torch and triton and nothing of this package."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_dsl.cli.inputs import File, PatternName, Settings, the_patterns
from nsa_dsl.cli.outcome import UserError, busy, for_each_file, write_whole

if TYPE_CHECKING:
    from nsa_dsl.launch import LaunchShape
    from nsa_dsl.pattern import Pattern


class Dtype(StrEnum):
    """What kernels are printed for."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


def compile_(
    file: File,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write; made if need be.", show_default=False)],
    pattern: PatternName = None,
    settings: Settings = None,
    head_dim: Annotated[int, typer.Option(min=1, help="Features of a query, key or value head; tiles are chosen for it.")] = 128,
    dtype: Annotated[Dtype, typer.Option(help="Of queries, keys and values.")] = Dtype.bf16,
    card: Annotated[str, typer.Option(help="The architecture to choose tiles for.")] = "sm_90",
) -> None:
    """Write two standalone modules a pattern, DIR/PATTERN_attention.py and DIR/PATTERN_attention_backward.py. Nothing is written unless
    all of them compile."""
    from nsa_dsl.launch import CARDS, LaunchShape

    def write_modules(path: Path) -> bool:
        if card not in CARDS:
            raise UserError(f"no such card: {card}; known are {', '.join(CARDS)}")
        shape = LaunchShape(dim_qk=head_dim, dim_v=head_dim, dtype=dtype.value, card=card)
        modules: dict[str, str] = {}
        for each in the_patterns(path, pattern, settings):
            for suffix, source in zip(("", "_backward"), sources_of(each, path, shape), strict=True):
                modules[f"{each.name}_attention{suffix}.py"] = source
        output.mkdir(parents=True, exist_ok=True)
        for name, source in modules.items():
            write_whole(output / name, source)
            typer.echo(f"wrote {output / name}")
        return True

    for_each_file([file], write_modules)


def sources_of(pattern: Pattern, file: Path, shape: LaunchShape) -> tuple[str, str]:
    """The modules generated for a pattern of this file: forward and backward. Raises UserError for one that has no kernels."""
    from nsa_dsl.compiler import compile_backward, compile_source
    from nsa_dsl.pattern import NotSupported

    with busy(f"compiling {pattern.name}"):
        try:
            return compile_source(pattern, shape), compile_backward(pattern, shape)
        except NotSupported as lacking:
            raise UserError(f"{file}: pattern {pattern.name}: {lacking}") from lacking
