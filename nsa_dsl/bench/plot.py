"""Rows as a picture: time against length, and how many times faster than dense attention. Needs matplotlib."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from nsa_dsl.bench.rows import OWN, Row, dense_row, speedup
from nsa_dsl.bench.table import name_of

COLORS = {OWN: "tab:blue", "cudnn": "0.3", "flash": "0.65", "flex": "tab:orange", "fla": "tab:green"}
STYLES = ("-", "--", ":", "-.")
Direction = Literal["forward", "backward"]


class NoMatplotlibError(Exception):
    """Drawing was asked for where matplotlib is not installed; str() says what to do."""

    def __init__(self) -> None:
        super().__init__("drawing needs matplotlib, which is not installed: pip install 'nsa-dsl[bench]'")


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, inches. Raises NoMatplotlibError."""
    try:
        figure: Any = importlib.import_module("matplotlib.figure").Figure
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise NoMatplotlibError from error
    return figure(figsize=(width, height), layout="constrained")


def draw(rows: Sequence[Row], machine: dict[str, str]) -> Any:
    """The figure: a column for each direction that was measured; times above, speed-ups below. Raises ValueError if nothing was measured,
    NoMatplotlibError."""
    directions: list[Direction] = [each for each in ("forward", "backward") if any(_ms(row, each) for row in rows)]
    if not directions:
        raise ValueError("no times in the results: nothing to draw")
    figure = new_figure(6 * len(directions), 7)
    grid = figure.subplots(2, len(directions), squeeze=False, sharex=True)
    for column, direction in enumerate(directions):
        above, below = grid[0][column], grid[1][column]
        _draw_times(above, rows, direction)
        _draw_speedups(below, rows, direction)
    commits = ", ".join(dict.fromkeys(row.commit[:12] for row in rows if row.commit)) or machine["commit"][:12]
    figure.suptitle(f"{machine['card']}, torch {machine['torch']}, triton {machine['triton']}, {commits}", fontsize=9)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=120)


def _ms(row: Row, direction: Direction) -> float | None:
    return row.forward_ms if direction == "forward" else row.backward_ms


def _series(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """(contender, line style, rows by length) of every line. Lines of one contender differ by style."""
    lines: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.tokens):
        lines.setdefault((row.contender, row.case, row.settings, row.choices), []).append(row)
    seen: dict[str, int] = {}
    found = []
    for (contender, *_), line in lines.items():
        place = seen[contender] = seen.get(contender, -1) + 1
        found.append((contender, STYLES[place % len(STYLES)], line))
    return found


def _label(row: Row, several: bool) -> str:
    return f"{name_of(row)}, {row.case}" if several else name_of(row)


def _draw_times(axes: Any, rows: Sequence[Row], direction: Direction) -> None:
    several = len({(row.case, row.settings) for row in rows}) > 1
    for contender, style, line in _series(rows):
        points = [(row.tokens, ms) for row in line if (ms := _ms(row, direction)) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, marker="o", color=COLORS.get(contender), label=_label(line[0], several))
    axes.set(title=direction, ylabel="ms", xscale="log", yscale="log")
    axes.legend(fontsize=8)


def _draw_speedups(axes: Any, rows: Sequence[Row], direction: Direction) -> None:
    """Against the fastest dense attention beside it."""
    for contender, style, line in _series(rows):
        points = [(row.tokens, times) for row in line if (times := speedup(rows, row, direction)) is not None]
        if points and any(dense_row(rows, row, direction) is not row for row in line):
            axes.plot(*zip(*points, strict=True), style, marker="o", color=COLORS.get(contender))
    axes.axhline(1.0, color="0.3", linewidth=1)
    axes.set(xlabel="tokens", ylabel="times faster than dense", xscale="log", yscale="log")
    lengths = sorted({row.tokens for row in rows})
    axes.set_xticks(lengths, [f"{each // 1024}k" if each % 1024 == 0 else str(each) for each in lengths])
    axes.minorticks_off()
