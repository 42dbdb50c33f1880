"""`nsa cost`: what each kernel of a pattern has to do, and how long that should take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_dsl.cli.calls import Dim, DimV, DtypeOption, Heads, KvHeads, parse_lengths, require_groups, tiles_text
from nsa_dsl.cli.compile import Dtype, sources_of
from nsa_dsl.cli.inputs import File, PatternName, Settings, the_patterns
from nsa_dsl.cli.outcome import UserError, busy, for_each_file

if TYPE_CHECKING:
    from nsa_dsl.launch import LaunchShape
    from nsa_dsl.pattern import Pattern

MODELS = ("h100", "h200")


def cost(
    file: File,
    pattern: PatternName = None,
    settings: Settings = None,
    lengths: Annotated[str, typer.Option(metavar="N,...", help="Tokens, `k` for 1,024.")] = "8k,64k",
    heads: Heads = 64,
    kv_heads: KvHeads = 4,
    dim: Dim = 128,
    dim_v: DimV = None,
    dtype: DtypeOption = Dtype.bf16,
    backward: Annotated[bool, typer.Option("--backward/--forward-only", help="Show the backward pass, too.")] = True,
    portable: Annotated[bool, typer.Option("--portable", help="Plain Triton kernels only.")] = False,
    card: Annotated[str, typer.Option(help=f"Of {', '.join(MODELS)}.")] = "h100",
) -> None:
    """Predict the time of each attention kernel from exact counts of tiles. Needs no GPU.

    Kernels that stand beside each other for the same work (`..._union`, or `..._by_blocks` and `..._merged`)
    are chosen between on the device: only one of them runs. What takes
    little (gates, compression, the search for the best blocks) is left out.
    """
    from nsa_dsl.launch import LaunchShape

    if card not in MODELS:
        raise UserError(f"--card {card}: there is no model of it; known are {', '.join(MODELS)}")
    require_groups(heads, kv_heads)
    tokens = parse_lengths(lengths)
    launch = LaunchShape(dim, dim if dim_v is None else dim_v, dtype.value, templates="portable" if portable else "best")

    def show(path: Path) -> bool:
        for each in the_patterns(path, pattern, settings):
            sources_of(each, path, launch)
            for length in tokens:
                _show(each, launch, length, heads, kv_heads, card, backward)
        return True

    for_each_file([file], show)


def _show(pattern: Pattern, launch: LaunchShape, tokens: int, heads: int, kv_heads: int, card: str, backward: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from nsa_dsl.cost import load_model, predict_ms
    from nsa_dsl.work import Call, kernels

    with busy(f"counting tiles of {pattern.name}"):
        model = load_model(card)
        rows = [each.work() for each in kernels(pattern, launch, Call(tokens, heads, kv_heads), backward=backward).values()]
    grid = Table(title=f"{pattern.name}, {tokens} tokens, {heads}/{kv_heads} heads, {card}, predicted", title_justify="left", box=None)
    for name in ("kernel", "tiles", "ms", "visible pairs", "TFLOP", "useful", "MB at least"):
        grid.add_column(name, justify="left" if name in ("kernel", "tiles") else "right", no_wrap=True)
    for work in rows:
        ms = predict_ms(work, model)
        done = float((work.full + work.partial).sum()) * work.copies * work.repeats * work.operations
        label = tiles_text(work.tiles, gluon=work.engine == "gluon")
        values = "-" if ms is None else f"{ms:.3f}", f"{work.visible:,}", f"{done / 1e12:.3f}", f"{work.useful / done:.0%}" if done else "-"
        grid.add_row(work.kernel, label, *values, f"{work.moved / 1e6:,.0f}")
    # Names cut short say nothing: a narrow terminal breaks lines instead.
    Console(width=max(Console().width, 120)).print(grid)
