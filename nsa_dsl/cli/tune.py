"""`nsa tune`: the fastest tiles for this card, measured, checked and kept for later calls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_dsl.cli.calls import Dim, DimV, DtypeOption, Heads, KvHeads, parse_lengths, require_gpu, require_groups, tiles_text
from nsa_dsl.cli.compile import Dtype, sources_of
from nsa_dsl.cli.inputs import File, PatternName, Settings, the_patterns
from nsa_dsl.cli.outcome import PATIENCE, UserError, for_each_file, write_whole

if TYPE_CHECKING:
    from nsa_dsl.arguments import Shape
    from nsa_dsl.launch import Pin
    from nsa_dsl.pattern import Pattern
    from nsa_dsl.tuned.table import Table
    from nsa_dsl.tuning.tune import Progress, Tuned


def tune(
    file: File,
    pattern: PatternName = None,
    settings: Settings = None,
    lengths: Annotated[str, typer.Option(metavar="N,...", help="Tokens, `k` for 1,024; each stands for lengths near it.")] = "8k,64k",
    heads: Heads = 64,
    kv_heads: KvHeads = 4,
    dim: Dim = 128,
    dim_v: DimV = None,
    dtype: DtypeOption = Dtype.bf16,
    backward: Annotated[bool, typer.Option("--backward/--forward-only", help="Tune the backward pass, too.")] = True,
    budget: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="For all of it; a round that runs is finished.")] = 120.0,
    card_json: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write the entries to this table, too: added to those there.", show_default=False)
    ] = None,
) -> None:
    """Try other tiles for each kernel of every pattern in a file, keep the fastest whose results and gradients are right.

    Entries go to the user's cache; every later call of a kernel like these uses them. Needs a GPU.
    """
    require_groups(heads, kv_heads)
    tokens = parse_lengths(lengths)

    def tune_file(path: Path) -> bool:
        from nsa_dsl.launch import LaunchShape

        patterns = the_patterns(path, pattern, settings)
        launch = LaunchShape(dim, dim if dim_v is None else dim_v, dtype.value)
        # What has no kernels is refused before torch is imported, which takes seconds.
        for each in patterns:
            sources_of(each, path, launch)
        require_gpu("tune")
        from nsa_dsl.arguments import Shape

        for each in patterns:
            shapes = [Shape(1, heads, kv_heads, length, launch.dim_qk, launch.dim_v) for length in tokens]
            table = _tune_pattern(each, shapes, dtype, budget / len(patterns), backward)
            if card_json is not None:
                _add_to(card_json, table)
        return True

    for_each_file([file], tune_file)


def _tune_pattern(pattern: Pattern, shapes: list[Shape], dtype: Dtype, budget: float, backward: bool) -> Table:
    import logging
    import time

    from nsa_dsl.launch import LaunchShape
    from nsa_dsl.tuning.tune import tune_pattern

    # Every candidate is compiled: no line for each.
    logging.getLogger("nsa_dsl").setLevel(logging.WARNING)
    reports: list[Tuned] = []
    said = time.monotonic()
    typer.echo(f"tuning {pattern.name} within {budget:.0f} s ...", err=True)

    def progress(now: Progress) -> None:
        nonlocal said
        if now.done in (0, now.planned) or time.monotonic() - said >= PATIENCE:
            said = time.monotonic()
            where = f"{pattern.name}, {now.tokens} tokens"
            typer.echo(f"{where}: {now.done} of {now.planned} candidates, at most {now.seconds:.0f} s left", err=True)

    table = tune_pattern(
        pattern, shapes, LaunchShape(dtype=dtype.value), budget=budget, backward=backward, report=reports.append, progress=progress
    )
    for each in reports:
        _print(each)
    typer.echo(f"{len(table.entries)} entries of {pattern.name} kept for {table.card}")
    return table


def _print(tuned: Tuned) -> None:
    """One table: what every kernel took, and takes."""
    from rich.console import Console
    from rich.table import Table as Grid

    outcome = tuned.outcome
    title = f"{tuned.pattern}, {tuned.tokens} tokens: {outcome.tried} of {outcome.of} candidates in {tuned.seconds:.0f} s"
    grid = Grid(title=title, title_justify="left", box=None)
    for name in ("kernel", "default", "ms", "best", "ms", "faster"):
        grid.add_column(name, justify="left" if name in ("kernel", "default", "best") else "right", no_wrap=True)
    for name, pin in tuned.defaults.items():
        if name in outcome.found:
            best = outcome.found[name]
            gain = "" if best.pin is None else f"{best.default_ms / best.ms - 1:.0%}"
            grid.add_row(name, _text(pin), f"{best.default_ms:.3f}", "" if best.pin is None else _text(best.pin), f"{best.ms:.3f}", gain)
    console = Console(width=max(Console().width, 120))
    console.print(grid)
    for name, pin, why in outcome.refused:
        console.print(f"refused: {name} {_text(pin)}: {why}", style="dim", highlight=False, markup=False, soft_wrap=True)


def _text(pin: Pin) -> str:
    return tiles_text(pin.tiles, gluon=bool(pin.hopper))


def _add_to(path: Path, table: Table) -> None:
    """Merge into the table at a path. Raises UserError if what is there is no table for this card."""
    from nsa_dsl.tuned.table import from_json, to_json

    if path.exists():
        old = from_json(path.read_text(encoding="utf-8"))
        if old is None or old.card != table.card:
            raise UserError(f"{path}: is not a table of entries for {table.card}; name another file, or delete it")
        table = table.with_entries({**old.entries, **table.entries})
    write_whole(path, to_json(table))
