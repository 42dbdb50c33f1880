"""Rows as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from rich.table import Table
from rich.text import Text

from nsa_dsl.bench.rows import OWN, Row, speedup

Cell = Callable[[Row], str]

TITLES = {
    OWN: "nsa_dsl",
    "cudnn": "dense, cuDNN",
    "flash": "dense, FlashAttention-2",
    "flex": "FlexAttention",
    "fla": "fla NSA",
}


def _number(name: str, digits: int, row: Row) -> str:
    value = getattr(row, name)
    return "" if value is None else f"{value:,.{digits}f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def name_of(row: Row) -> str:
    """The contender and, where it matters, what was chosen."""
    title = TITLES.get(row.contender, row.contender)
    return f"{title}, {row.choices}" if row.choices else title


def columns(rows: Sequence[Row]) -> list[tuple[str, Cell]]:
    """Heading and cell of every column that says something."""

    def number(name: str, digits: int) -> Cell:
        return partial(_number, name, digits)

    every: list[tuple[str, Cell]] = [
        ("tokens", lambda row: f"{row.tokens:,}"),
        ("", name_of),
        ("fwd ms", number("forward_ms", 2)),
        ("bwd ms", number("backward_ms", 2)),
        ("fwd vs dense", lambda row: _times(speedup(rows, row, "forward"))),
        ("bwd vs dense", lambda row: _times(speedup(rows, row, "backward"))),
        ("fwd TFLOP/s", number("forward_tflops", 0)),
        ("bwd TFLOP/s", number("backward_tflops", 0)),
        ("fwd GiB", number("forward_gib", 2)),
        ("fwd+bwd GiB", number("both_gib", 2)),
        ("mask, first ms", number("mask_first_ms", 0)),
        ("mask ms", number("mask_ms", 2)),
        ("mask GiB", number("mask_gib", 2)),
        ("union of 4", number("union", 1)),
    ]
    return [(heading, cell) for heading, cell in every if any(cell(row) for row in rows)]


def make_table(rows: Sequence[Row], title: str) -> Table:
    """One table of rows that belong together."""
    table = Table(title=title, title_justify="left", header_style="")
    shown = columns(rows)
    for heading, _ in shown:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    last = None
    for row in rows:
        if last not in (None, row.tokens):
            table.add_section()
        last = row.tokens
        # Plain text: what a library's error says is no markup.
        table.add_row(*(Text(cell(row)) for _, cell in shown))
    return table


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table for every case and its settings, in the order of the rows."""
    return [make_table(group, title) for title, group in grouped(rows).items()]


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Title -> the rows of one table, by length; those of peers that could not take part are left to the notes."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.tokens):
        if row.forward_ms is not None or row.contender == OWN:
            groups.setdefault(f"{row.case}: {row.settings}", []).append(row)
    return {title: groups[title] for title in dict.fromkeys(f"{row.case}: {row.settings}" for row in rows) if title in groups}


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know to compare: each contender's note once, and why a time is missing."""
    told: dict[str, list[int]] = {}
    for row in rows:
        if row.note:
            told[f"{TITLES.get(row.contender, row.contender)}: {row.note}"] = []
        if row.refused:
            missing = "not measured, " if row.forward_ms is None else ""
            told.setdefault(f"{row.case}, {name_of(row)}: {missing}{row.refused}", []).append(row.tokens)
    where = {text: f" (at {', '.join(f'{each:,}' for each in tokens)} tokens)" if tokens else "" for text, tokens in told.items()}
    return [text + where[text] for text in told] + _commits(rows) + [CONVENTION]


def _commits(rows: Sequence[Row]) -> list[str]:
    """Which cases were measured at which commit, where there is more than one."""
    cases: dict[str, list[str]] = {}
    for row in rows:
        if row.forward_ms is not None:
            cases.setdefault(row.commit or "an unknown commit", []).append(f"{row.case} ({name_of(row)})")
    return [f"at {commit}: {'; '.join(dict.fromkeys(each))}" for commit, each in cases.items()] if len(cases) > 1 else []


CONVENTION = (
    "Medians of CUDA events, L2 flushed before every run; memory above the inputs; backward alone; TFLOP/s over visible pairs only, "
    "2.5 times forward's products backward"
)


def kernel_table(rows: Sequence[Row]) -> Table:
    """Milliseconds of each generated kernel, a column for each of the project's own rows."""
    own = sorted((row for row in rows if row.kernels), key=lambda row: (row.case, row.choices, row.tokens))
    table = Table(title="kernels, ms in one call", title_justify="left", header_style="")
    table.add_column("")
    for row in own:
        table.add_column(f"{row.case}\n{row.tokens:,}\n{row.choices}", justify="right")
    for name in dict.fromkeys(name for row in own for name in row.kernels):
        table.add_row(Text(name), *("" if name not in row.kernels else f"{row.kernels[name]:.2f}" for row in own))
    return table


def markdown(rows: Sequence[Row]) -> str:
    """The tables and notes for a document."""
    parts = []
    for title, group in grouped(rows).items():
        shown = columns(group)
        lines = [[heading for heading, _ in shown], ["---:" if heading else "---" for heading, _ in shown]]
        lines += [[cell(row) for _, cell in shown] for row in group]
        parts.append("\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines)]))
    return "\n\n".join([*parts, "\n".join(f"- {each}" for each in notes(rows))]) + "\n"
