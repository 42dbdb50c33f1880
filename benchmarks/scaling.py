"""Whether time per token stays flat, and NSA at 256k and 512k tokens on one card.

    python benchmarks/scaling.py [--only per-token,256k,512k] [--budget SECONDS] [--out DIR] [--commit HASH]

per-token: a window of 512 and selected attention (16 blocks of 64, given at random), 64 query and 4 KV heads, forward and backward, from
8k to 256k tokens. 256k, 512k: whole NSA, compression by means, q, k and v packed in one tensor: forward, backward, peak memory; then output
and gradients at the far end, where offsets pass 2^31 elements, against the paper's equations in float32.

Each part runs in a process of its own, within its time. Leaves DIR/scaling-CARD.json. Exit status: 0 if everything was measured and is
right, 1 if not, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402 - the checkout comes before an installed package
from rich.table import Table  # noqa: E402

from benchmarks.cases import LONG_NSA  # noqa: E402
from benchmarks.far_end import far_row  # noqa: E402
from benchmarks.parts import card_of, command_line, has_gpu, line, read_rows, run_part  # noqa: E402
from benchmarks.sections import HERE, K, measure  # noqa: E402
from nsa_dsl.bench.rows import OWN, Row, Settings, write_json  # noqa: E402
from nsa_dsl.bench.run import reason  # noqa: E402
from nsa_dsl.bench.table import notes, tables  # noqa: E402
from nsa_dsl.bench.timing import describe_machine  # noqa: E402
from nsa_dsl.loader import load_spec  # noqa: E402

PARTS = {"per-token": 100.0, "256k": 100.0, "512k": 150.0}
"""Seconds of each part, starting included."""
FAR = {"256k": 256 * K, "512k": 512 * K}
NSA = "NSA, compression by means"


def main() -> int:
    given = command_line(__doc__, "part", PARTS).parse_args()
    if not has_gpu(__file__):
        return 2
    if given.part:
        _measure_part(given)
        return 0
    # This process leaves the card alone: a context of its own would take memory from the parts.
    rows: list[Row] = []
    machine: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            path = Path(folder) / f"{name}.json"
            budget = given.budget or PARTS[name]
            commit = ["--commit", given.commit] if given.commit else []
            ended = run_part(Path(__file__), ["--only", name, "--part", str(path), "--budget", str(budget), *commit], budget)
            rows += read_rows(path)
            machine = json.loads(path.read_text())["machine"] if path.exists() else machine
            if ended is not None:
                rows.append(Row(name, "", FAR.get(name, 0), OWN, refused=ended))
            result = given.out / f"scaling-{card_of(machine)}.json"
            write_json(result, machine, rows)
    console = Console(width=max(Console().width, 160))
    for table in (per_token_table(rows), *tables(rows)):
        console.print(table)
    for note in notes(rows):
        console.print(note, highlight=False, markup=False)
    print(result)
    return 0 if all(row.backward_ms is not None and not row.refused for row in rows) else 1


def _measure_part(given: argparse.Namespace) -> None:
    machine, rows = describe_machine(given.commit), dict[tuple[str, str, int], Row]()

    def report(row: Row) -> None:
        # A row that comes again says more than before.
        rows[row.case, row.choices, row.tokens] = row
        print("  " + line(row) + (f" ({row.note})" if row.note else ""), flush=True)
        write_json(given.part, machine, list(rows.values()))

    (name,) = given.only
    if name == "per-token":
        measure("scaling", given.budget, report)
        return
    blank = Row(NSA, str(Settings((FAR[name],))), FAR[name], OWN, "random")
    try:
        far_row(load_spec(ROOT / HERE).pattern("nsa_mean"), blank, LONG_NSA, report)
    except Exception as error:  # what was measured before stays
        report(replace(rows.get((NSA, blank.choices, FAR[name]), blank), refused=reason(error)))


def per_token_table(rows: list[Row]) -> Table:
    """Nanoseconds per token, and how many times that is of the shortest length's."""
    table = Table(title="time per token", title_justify="left", header_style="")
    for heading in ("case", "tokens", "fwd ns", "of the shortest", "bwd ns", "of the shortest"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    shortest: dict[str, Row] = {}
    measured = [each for each in rows if each.case != NSA and each.tokens]
    for row in sorted(measured, key=lambda each: (each.case, each.choices != "random", each.tokens)):
        case = f"{row.case}, {row.choices}" if row.choices else row.case
        first = shortest.setdefault(case, row)
        cells: list[str] = []
        for ms, least in ((row.forward_ms, first.forward_ms), (row.backward_ms, first.backward_ms)):
            each = None if ms is None else ms * 1e6 / row.tokens
            base = None if not least else least * 1e6 / first.tokens
            cells += ["" if each is None else f"{each:.1f}", "" if each is None or base is None else f"{each / base:.2f}x"]
        table.add_row(case, f"{row.tokens:,}", *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
