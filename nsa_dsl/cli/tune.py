"""`nsa tune`: the fastest tiles for this card, measured, checked and kept for later calls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_dsl.cli.calls import Dim, DimV, DtypeOption, Heads, KvHeads, parse_lengths, require_gpu, require_groups, tiles_text
from nsa_dsl.cli.compile import Dtype, sources_of
from nsa_dsl.cli.inputs import Files, PatternName, Settings, the_patterns
from nsa_dsl.cli.outcome import PATIENCE, UserError, for_each_file, write_whole

if TYPE_CHECKING:
    from nsa_dsl.arguments import Shape
    from nsa_dsl.launch import Pin
    from nsa_dsl.pattern import Pattern
    from nsa_dsl.tuned.table import Table
    from nsa_dsl.tuning.tune import Progress, Tuned


def tune(
    files: Files,
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
    commit: Annotated[str, typer.Option(metavar="HASH", help="What is measured, for the entries to say.", show_default=False)] = "",
) -> None:
    """Try other tiles for each kernel of every pattern in the files, keep the fastest whose results and gradients are right.

    Entries go to the user's cache; every later call of a kernel like these uses them. Needs a GPU.
    """
    require_groups(heads, kv_heads)
    tokens = parse_lengths(lengths)

    from nsa_dsl.launch import LaunchShape

    launch = LaunchShape(dim, dim if dim_v is None else dim_v, dtype.value)
    patterns: list[Pattern] = []

    def collect(path: Path) -> bool:
        found = the_patterns(path, pattern, settings)
        # What has no kernels is refused before torch is imported, which takes seconds.
        for each in found:
            sources_of(each, path, launch)
        patterns.extend(found)
        return True

    for_each_file(files, collect)
    require_gpu("tune")
    _table_at(card_json)
    import time

    from nsa_dsl.arguments import Shape

    shapes = [Shape(1, heads, kv_heads, length, launch.dim_qk, launch.dim_v) for length in tokens]
    deadline = time.monotonic() + budget
    for at, each in enumerate(patterns):
        share = max(0.0, deadline - time.monotonic()) / (len(patterns) - at)
        table = _tune_pattern(each, shapes, dtype, share, backward, commit)
        if card_json is not None:
            _add_to(card_json, table)


def _tune_pattern(pattern: Pattern, shapes: list[Shape], dtype: Dtype, budget: float, backward: bool, commit: str) -> Table:
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
        pattern,
        shapes,
        LaunchShape(dtype=dtype.value),
        budget=budget,
        backward=backward,
        commit=commit,
        report=reports.append,
        progress=progress,
    )
    for each in reports:
        _print(each)
    typer.echo(f"{len(table.entries)} entries of {pattern.name} kept for {table.card}")
    return table


def _print(tuned: Tuned) -> None:
    """One table: what every kernel took, the best of its candidates, and which of the two later calls use."""
    from rich.console import Console
    from rich.table import Table as Grid

    outcome = tuned.outcome
    title = f"{tuned.pattern}, {tuned.tokens} tokens: {outcome.tried} of {outcome.of} candidates in {tuned.seconds:.0f} s"
    grid = Grid(title=title, title_justify="left", box=None)
    for name in ("kernel", "default", "ms", "best candidate", "ms", "faster", "used"):
        grid.add_column(name, justify="right" if name in ("ms", "faster") else "left", no_wrap=True)
    for name, pin in tuned.defaults.items():
        if name in outcome.found:
            found = outcome.found[name]
            tried = ("", "", "")
            if found.best is not None and found.best_ms:
                tried = (_text(found.best), f"{found.best_ms:.3f}", f"{found.default_ms / found.best_ms - 1:.0%}")
            grid.add_row(name, _text(pin), f"{found.default_ms:.3f}", *tried, "candidate" if found.wins else "default")
    console = Console(width=max(Console().width, 120))
    console.print(grid)
    for name, pin, why in outcome.refused:
        console.print(f"refused: {name} {_text(pin)}: {why}", style="dim", highlight=False, markup=False, soft_wrap=True)


def _text(pin: Pin) -> str:
    return tiles_text(pin.tiles, gluon=bool(pin.hopper))


def _table_at(path: Path | None) -> Table | None:
    """The table at a path, None where there is none. Raises UserError if what is there is no table for this card."""
    import torch

    from nsa_dsl.tuned.table import from_json

    if path is None or not path.exists():
        return None
    card = torch.cuda.get_device_name()
    found = from_json(path.read_text(encoding="utf-8"))
    if found is None or found.card != card:
        raise UserError(f"{path}: is not a table of entries for {card}; name another file, or delete it")
    return found


def _add_to(path: Path, table: Table) -> None:
    """Merge into the table at a path: entries of the same kernel, shape and length are replaced, all others stay."""
    from dataclasses import replace

    from nsa_dsl.tuned.table import to_json

    old = _table_at(path)
    write_whole(path, to_json(table if old is None else replace(table, entries={**old.entries, **table.entries})))
