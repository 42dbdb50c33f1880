"""What the generated kernels should reach on an H100, beside what a run measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rich.table import Table

from nsa_dsl.bench.rows import OWN, Row

Measure: TypeAlias = Literal[
    "forward_ms", "backward_ms", "both_gib", "forward_tflops", "both_tflops", "forward_per_token", "backward_per_token"
]

K = 1024
SHORT = 8 * K
"""Where time per token is compared with."""


@dataclass(frozen=True, slots=True)
class Goal:
    """must, reach: the two bounds on a measure of the project's own row; None where there is none. TFLOP/s are to be exceeded, all else is
    to be kept below. *_per_token: time per token as a multiple of that at 8k tokens."""

    case: str
    tokens: int
    measure: Measure
    must: float | None
    reach: float | None = None
    choices: str = ""

    @property
    def more(self) -> bool:
        """Whether more is better."""
        return self.measure.endswith("tflops")


GOALS = (
    Goal("NSA", 64 * K, "forward_ms", 34, 29, "random"),
    Goal("NSA", 64 * K, "forward_ms", 26, 21, "clustered"),
    Goal("NSA", 64 * K, "backward_ms", 60, 48, "random"),
    Goal("NSA", 64 * K, "backward_ms", 58, 45, "clustered"),
    Goal("NSA", 32 * K, "forward_ms", 14, 11, "random"),
    Goal("NSA", 32 * K, "backward_ms", 28, 20, "random"),
    Goal("NSA", 8 * K, "forward_ms", 2.6, 1.8, "random"),
    Goal("NSA", 8 * K, "backward_ms", 5.4, 4.2, "random"),
    Goal("NSA", 64 * K, "both_gib", 6.2, 4, "random"),
    Goal("selected, groups of 1", 32 * K, "forward_ms", 97, 97 / 2, "random"),
    Goal("selected, groups of 4", 32 * K, "forward_ms", 40, 40 / 2, "random"),
    Goal("causal", 16 * K, "forward_tflops", 690),
    Goal("causal", 32 * K, "forward_tflops", 690),
    Goal("causal", 16 * K, "both_tflops", 585, 655),
    Goal("causal", 32 * K, "both_tflops", 585, 655),
    Goal("causal, D = 64", 32 * K, "forward_tflops", 490),
    Goal("window 1,024", 64 * K, "forward_tflops", 470),
    Goal("window 1,024", 64 * K, "both_tflops", 410),
    Goal("window 4,096", 64 * K, "forward_tflops", 610),
    Goal("blocks of 128, 10%", 32 * K, "forward_tflops", 520),
    Goal("blocks of 128, 10%", 32 * K, "both_tflops", 400),
    Goal("blocks of 64, 10%", 32 * K, "forward_tflops", 415),
    *(
        Goal(case, 256 * K, measure, 1.15, 1.0, choices)
        for case, choices in (("window 512 alone", ""), ("selected alone", "random"), ("selected alone", "clustered"))
        for measure in ("forward_per_token", "backward_per_token")
    ),
)


def measured(goal: Goal, rows: Sequence[Row]) -> float | None:
    """What a run found for a goal; None if it did not measure it."""
    own = {row.tokens: row for row in rows if (row.case, row.contender, row.choices) == (goal.case, OWN, goal.choices)}
    row = own.get(goal.tokens)
    if row is None:
        return None
    match goal.measure:
        case "both_tflops":
            return _both_tflops(row)
        case "forward_per_token":
            return _per_token(row.forward_ms, row, own.get(SHORT), "forward_ms")
        case "backward_per_token":
            return _per_token(row.backward_ms, row, own.get(SHORT), "backward_ms")
        case simple:
            value: float | None = getattr(row, simple)
            return value


def _both_tflops(row: Row) -> float | None:
    if row.forward_ms is None or row.backward_ms is None or row.forward_tflops is None or row.backward_tflops is None:
        return None
    work = row.forward_tflops * row.forward_ms + row.backward_tflops * row.backward_ms
    return work / (row.forward_ms + row.backward_ms)


def _per_token(ms: float | None, row: Row, short: Row | None, name: str) -> float | None:
    before = None if short is None else getattr(short, name)
    return None if ms is None or not before or short is None else (ms / row.tokens) / (before / short.tokens)


def verdict(value: float | None, bound: float | None, more: bool) -> str:
    """By how much a bound is missed or beaten."""
    if bound is None:
        return ""
    if value is None:
        return "not measured"
    ahead = value / bound - 1 if more else bound / value - 1
    return f"beaten by {ahead:.0%}" if ahead >= 0 else f"missed by {(bound / value if more else value / bound) - 1:.0%}"


HEADINGS = ("case", "tokens", "measure", "must", "reach for", "measured", "must is", "reach for is")
NUMBERS = HEADINGS[3:6] + HEADINGS[1:2]


def goal_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Every goal beside what was measured, as HEADINGS."""
    found = []
    for goal in GOALS:
        value = measured(goal, rows)
        sign = ">=" if goal.more else "<="
        found.append(
            (
                f"{goal.case}, {goal.choices}" if goal.choices else goal.case,
                f"{goal.tokens // K}k",
                goal.measure.replace("_", " "),
                *("" if bound is None else f"{sign} {bound:g}" for bound in (goal.must, goal.reach)),
                "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}",
                *(verdict(value, bound, goal.more) for bound in (goal.must, goal.reach)),
            )
        )
    return found


def goal_table(rows: Sequence[Row]) -> Table:
    """`goal_cells` for a terminal."""
    table = Table(title="goals on an H100", title_justify="left", header_style="")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in NUMBERS else "left")
    for cells in goal_cells(rows):
        table.add_row(*cells)
    return table


def goal_markdown(rows: Sequence[Row]) -> str:
    """`goal_cells` for a document."""
    lines = [HEADINGS, ["---:" if heading in NUMBERS else "---" for heading in HEADINGS], *goal_cells(rows)]
    return "\n".join(["goals on an H100", "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"
