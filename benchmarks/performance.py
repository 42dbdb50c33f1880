"""The performance table of the README: NSA, its shapes and group sizes, static patterns and scaling, each beside its peers.

    python benchmarks/performance.py [--only nsa,shapes,graphs,groups,static,scaling,fla] [--seconds N] [--budget SECONDS] [--out DIR]
                                     [--add FILE] [--commit HASH]

Every section runs in a process of its own, within its time, and all of them within --seconds. Rows are printed as they come, and kept: a
section leaves them in DIR/performance-part-SECTION.json until it ends. --add FILE, which may be what an earlier call left, keeps its rows,
each with the commit that it is of, unless they are measured again. The tables come last, and after them every goal beside what was
measured. Leaves DIR/performance-CARD.json, .md and, where matplotlib is installed, .png. Exit status: 0 if the kernels of this project
were measured everywhere, 1 if not, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402 - the checkout comes before an installed package

from benchmarks.goals import goal_markdown, goal_table  # noqa: E402
from benchmarks.parts import GRACE, card_of, command_line, has_gpu, line, names_of, read_rows, run_part  # noqa: E402
from benchmarks.sections import BUDGETS, SECTIONS, contenders, measure  # noqa: E402
from nsa_dsl.bench.plot import NoMatplotlibError, draw, save  # noqa: E402
from nsa_dsl.bench.rows import OWN, PEERS, Row, write_json  # noqa: E402
from nsa_dsl.bench.run import SPENT, UNFINISHED  # noqa: E402
from nsa_dsl.bench.table import kernel_table, markdown, notes, tables  # noqa: E402
from nsa_dsl.bench.timing import describe_machine  # noqa: E402

STARTED = time.monotonic()
LEAST_SECONDS = 20.0
"""In less a section measures nothing: half of it to start, half to end."""


def main() -> int:
    given = _command_line()
    if not has_gpu(__file__):
        return 2
    if given.part:
        _measure_part(given)
        return 0
    machine = describe_machine(given.commit)
    path = given.out / f"performance-{card_of(machine)}.json"
    rows = _earlier(given.add, machine) if given.add else []
    for section in given.only:
        left = given.seconds - (time.monotonic() - STARTED)
        if left < LEAST_SECONDS:
            print(f"section {section} is left out: no time is left", flush=True)
            continue
        rows = merged(rows, _run_section(section, given, left), section)
        write_json(path, machine, rows)
    _show(rows, machine, path)
    return 0 if all(row.forward_ms is not None and not row.refused for row in rows if row.contender == OWN or _is_end(row)) else 1


def _earlier(path: Path, machine: Mapping[str, str]) -> list[Row]:
    """The rows of an earlier call, each with its commit; none if there was none. Ends the program if they are of another card."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))["machine"]
    if found["card"] != machine["card"]:
        sys.exit(f"{path}: is of {found['card']}, and this is {machine['card']}")
    return [replace(row, commit=row.commit or found["commit"]) for row in read_rows(path)]


def merged(old: Sequence[Row], new: Sequence[Row], section: str) -> list[Row]:
    """Old rows and those of a section that has run: what it measured again is replaced, and so is what was not measured before. A row for
    which no time was left replaces none that has times."""
    known = {_key(row) for row in old if row.forward_ms is not None}
    new = [row for row in new if row.refused not in (SPENT, UNFINISHED) or _key(row) not in known]
    fresh = {_key(row) for row in new}
    again = {(job.case, each) for job in SECTIONS[section] for each in (*contenders(job), _end(section))}
    stale = [row for row in old if _key(row) in fresh or (row.forward_ms is None and (row.case, row.contender) in again)]
    return [row for row in old if row not in stale] + list(new)


def _key(row: Row) -> tuple[object, ...]:
    return row.case, row.settings, row.tokens, row.contender, row.choices


def _end(section: str) -> str:
    """Whose row says that a section did not end well."""
    return f"section {section}"


def _is_end(row: Row) -> bool:
    return row.contender in map(_end, SECTIONS)


def _command_line() -> argparse.Namespace:
    parser = command_line(__doc__, "section", BUDGETS)
    parser.add_argument("--peers", type=names_of(PEERS), default=list(PEERS), help=f"of {', '.join(PEERS)}; default: all")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all sections together; default: as long as they take")
    parser.add_argument("--add", type=Path, metavar="FILE", help="results of an earlier run: rows that are not measured again are kept")
    return parser.parse_args()


def _run_section(section: str, given: argparse.Namespace, left: float) -> list[Row]:
    """The rows of a section. left: seconds, after which it is ended."""
    budget = min(given.budget or BUDGETS[section], left - LEAST_SECONDS / 2)
    part = given.out / f"performance-part-{section}.json"
    part.unlink(missing_ok=True)
    print(f"section {section}, {budget:.0f} s", flush=True)
    arguments = ["--only", section, "--budget", str(budget), "--part", str(part), "--peers", ",".join(given.peers)]
    arguments += ["--commit", given.commit] if given.commit else []
    ended = run_part(Path(__file__), arguments, budget, min(GRACE, left - budget))
    rows = read_rows(part)
    part.unlink(missing_ok=True)
    if ended is None:
        return rows
    print(f"section {section} {ended}", flush=True)
    job = SECTIONS[section][0]
    return [*rows, Row(job.case, str(job.settings), job.settings.lengths[0], _end(section), refused=ended)]


def _measure_part(given: argparse.Namespace) -> None:
    machine, rows = describe_machine(given.commit), dict[tuple[object, ...], Row]()

    def report(row: Row) -> None:
        # A row that comes again says more than before.
        rows[_key(row)] = replace(row, commit=machine["commit"])
        if row.refused != UNFINISHED:
            print(f"{time.monotonic() - STARTED:5.0f} s  {line(row)}", flush=True)
        write_json(given.part, machine, list(rows.values()))

    (section,) = given.only
    measure(section, given.budget, report, tuple(given.peers))


def _show(rows: list[Row], machine: dict[str, str], path: Path) -> None:
    console = Console(width=max(Console().width, 160))
    kernels = [kernel_table([row for row in rows if row.case.startswith(case)]) for case in ("NSA", "selected, ")]
    for table in (*tables(rows), *(each for each in kernels if each.row_count), goal_table(rows)):
        console.print(table)
    for note in notes(rows):
        console.print(note, highlight=False, markup=False)
    path.with_suffix(".md").write_text(f"{markdown(rows)}\n{goal_markdown(rows)}", encoding="utf-8")
    print(path)
    try:
        save(draw([row for row in rows if row.case == "NSA"], machine), path.with_suffix(".png"))
        print(path.with_suffix(".png"))
    except NoMatplotlibError as lacking:
        print(f"no picture: {lacking}; then benchmarks/plot.py {path} --case NSA draws it", file=sys.stderr)
    except ValueError as nothing:
        print(f"no picture of NSA: {nothing}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
